"""What to ask and when: the conversations of a run, by the flags of load.py. No gRPC here."""

import dataclasses
import json
import math
import random
import typing


@dataclasses.dataclass
class Turn:
    prompt: typing.List[int]
    output_len: int
    cancel_after: int = -1  # tokens; 0: at once; -1: never
    deadline: float = 0  # seconds; 0: none


@dataclasses.dataclass
class Session:
    at: float  # seconds from the start of the run
    turns: typing.List[Turn]


def arrivals(args, rng):
    """Times of --arrival, --request-rate, --burstiness and --burst-size, without end."""
    now, index = 0.0, 0
    while True:
        if math.isinf(args.request_rate):
            yield 0.0
        elif args.arrival == "constant":
            yield index / args.request_rate
        elif args.arrival == "burst":
            yield index // args.burst_size * args.burst_size / args.request_rate
        else:  # gaps of a gamma distribution; a shape of 1 is a Poisson process
            if index > 0:
                now += rng.gammavariate(args.burstiness, 1 / (args.request_rate * args.burstiness))
            yield now
        index += 1


def read_trace(path):
    """Lines {"timestamp": s, "input_len": n, "output_len": n}, as (seconds from the first, n, n)."""
    entries = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                entries.append((float(entry["timestamp"]),
                                int(entry.get("input_len", entry.get("input_length"))),
                                int(entry.get("output_len", entry.get("output_length")))))
            except (ValueError, TypeError, KeyError) as error:
                raise SystemExit(f"load.py: error: {path}, line {number}: {error!r}")
    if not entries:
        raise SystemExit(f"load.py: error: {path}: holds no request")
    entries.sort(key=lambda entry: entry[0])
    return [(at - entries[0][0], prompt, answer) for at, prompt, answer in entries]


def read_sharegpt(path):
    """Lists of (question, answer), one list a conversation."""
    with open(path, encoding="utf-8") as file:
        conversations = json.load(file)
    found = []
    for entry in conversations:
        messages = entry.get("conversations", []) if isinstance(entry, dict) else []
        pairs = []
        for question, answer in zip(messages[::2], messages[1::2]):
            if question.get("from") not in ("human", "user") or answer.get("from") not in ("gpt", "assistant"):
                break
            pairs.append((question["value"], answer["value"]))
        if pairs:
            found.append(pairs)
    if not found:
        raise SystemExit(f"load.py: error: {path}: no conversation of a human's question and an answer")
    return found


class Workload:
    """Iterates over Sessions. The same --seed gives the same ones."""

    def __init__(self, args, vocab_size, context_length, end_ids, tokenize):
        self.args, self.vocab_size, self.context = args, vocab_size, context_length
        self.end_ids = set(end_ids) if vocab_size > 16 else set()
        self.random = random.Random(args.seed)
        self.limit = args.num_prompts or (None if args.duration else 1000)
        self.trace = read_trace(args.dataset_path) if args.dataset_name == "trace" else None
        if self.trace:
            lines = len(self.trace) * args.num_turns
            self.limit = min(args.num_prompts or lines, lines)
        self.shared = None
        if args.dataset_name == "sharegpt":
            conversations = read_sharegpt(args.dataset_path)
            self.random.shuffle(conversations)
            self.shared = [[(tokenize(question), max(len(tokenize(answer)), 1))
                            for question, answer in pairs[:args.num_turns]]
                           for pairs in conversations[:min(self.limit or 2000, 2000)]]
        self.prefixes = [self.ids(args.random_prefix_len) for _ in range(args.random_num_prefixes)]
        low, _, high = args.deadline_ms.partition(":") if args.deadline_ms else ("0", "", "")
        self.deadline = (float(low) / 1000, float(high or low) / 1000)

    def ids(self, count):
        ids = []
        while len(ids) < min(count, self.context):
            token = self.random.randrange(self.vocab_size)
            if token not in self.end_ids:
                ids.append(token)
        return ids

    def length(self, mean):
        ratio, sigma = self.args.random_range_ratio, self.args.lognormal_sigma
        if self.args.dataset_name == "lognormal":
            return max(round(self.random.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)), 1)
        if ratio > 0:
            return max(self.random.randint(math.floor(mean * (1 - ratio)), math.ceil(mean * (1 + ratio))), 1)
        return mean

    def turn(self, prompt, output_len):
        turn = Turn(prompt, output_len)
        if self.random.random() < self.args.cancel_fraction:
            turn.cancel_after = int(self.random.random() * output_len)
        turn.deadline = self.random.uniform(*self.deadline)
        return turn

    def session(self, index, times):
        args, at = self.args, None
        if self.shared:
            turns = [self.turn(list(ids), length) for ids, length in self.shared[index % len(self.shared)]]
        else:
            turns = []
            for number in range(args.num_turns):
                prompt, answer = args.random_input_len, args.random_output_len
                if self.trace and number == 0:
                    at, prompt, answer = self.trace[index]
                else:
                    prompt, answer = self.length(prompt), self.length(answer)
                turns.append(self.turn(self.ids(prompt), answer))
        turns[0].prompt[:0] = self.prefixes[index % len(self.prefixes)]
        used = 0
        for number, turn in enumerate(turns):  # what the context cannot hold would only be refused
            left = self.context - used
            if left < 2:
                turns = turns[:number]
                break
            del turn.prompt[left - 1:]
            turn.output_len = min(turn.output_len, left - len(turn.prompt))
            used += len(turn.prompt) + turn.output_len
        return Session(next(times) if at is None else at / args.trace_speedup, turns)

    def sample(self):
        """A turn like the first, for warming up; what follows is as if it had not been asked."""
        state = self.random.getstate()
        turn = self.session(0, iter([0.0])).turns[0]
        self.random.setstate(state)
        turn.cancel_after, turn.deadline = -1, 0
        return turn

    def __iter__(self):
        times = arrivals(self.args, random.Random(self.args.seed + 1))
        made = index = 0
        while self.limit is None or made < self.limit:
            session = self.session(index, times)
            if self.limit is not None:
                session.turns = session.turns[:self.limit - made]
            made += len(session.turns)
            index += 1
            yield session
