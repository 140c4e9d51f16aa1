#!/usr/bin/env python3
"""Loads a running Shoal server and says how it fared: `shoal bench serve` in Python, to be changed at will.

    python3 load.py --server 127.0.0.1:8000 --num-prompts 200 --max-concurrency 16 --ignore-eos

Same flags, table and JSON keys. One process of Python sends some thousand tokens per second before it
measures itself; the C++ client goes much further (docs/load_testing.md).
"""

import argparse
import asyncio
import copy
import dataclasses
import json
import math
import os
import sys
import time
import typing

import grpc

import figures
import stubs
import workload

pb, services = stubs.load()


@dataclasses.dataclass
class Outcome:
    """What one request became. Times in seconds."""

    start: float = 0
    lag: float = 0
    status: str = "OK"
    error: str = ""
    cancelled: bool = False  # by us, on purpose
    ttft: float = 0
    latency: float = 0
    itl: typing.List[float] = dataclasses.field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0


class Run:
    """One measurement."""

    def __init__(self, args, stub, metadata, server, work):
        self.args, self.stub, self.metadata, self.server, self.work = args, stub, metadata, server, work
        self.outcomes, self.seconds, self.running, self.peak, self.sent = [], [], 0, 0, 0
        self.slots = asyncio.Semaphore(args.max_concurrency) if args.max_concurrency else None
        self.begin = time.perf_counter()

    def second(self, at):
        while len(self.seconds) <= int(at):
            self.seconds.append({"second": len(self.seconds), "sent": 0, "completed": 0, "failed": 0,
                                 "output_tokens": 0, "concurrency": self.running})
        return self.seconds[int(at)]

    async def request(self, turn, history, messages, due, outcome):
        """Sends one turn; history or messages, all that was said so far, gain the question and the answer."""
        args = self.args
        sampling = pb.SamplingParams(temperature=args.temperature, max_tokens=turn.output_len,
                                     seed=args.seed + self.sent)
        if args.ignore_eos:
            sampling.ignore_eos = True
        chat = args.backend == "shoal-chat"
        if chat:
            text = (await self.stub.Detokenize(
                pb.DetokenizeRequest(ids=turn.prompt, skip_special_tokens=True), metadata=self.metadata)).text
            messages.append(pb.Message(role="user", content=text))
            request, method = pb.ChatRequest(messages=messages, sampling=sampling), self.stub.Chat
        else:
            history.extend(turn.prompt)
            request = pb.CompleteRequest(token_ids=pb.TokenIds(ids=history), sampling=sampling)
            method = self.stub.Complete
        self.sent += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        sent = last = time.perf_counter()
        outcome.start, outcome.lag = sent - self.begin, sent - due
        second = self.second(outcome.start)
        second["sent"] += 1
        second["concurrency"] = max(second["concurrency"], self.running)
        answer = ""
        try:
            call = method(request, metadata=self.metadata, timeout=turn.deadline or None)
            if turn.cancel_after == 0:
                call.cancel()
            async for response in call:
                now = time.perf_counter()
                new = 0
                for output in response.outputs:
                    if chat:
                        answer += output.content
                        new += bool(output.content or output.reasoning_content)
                    else:
                        history.extend(output.token_ids)
                        new += len(output.token_ids)
                if new:
                    if outcome.ttft:
                        outcome.itl.append(now - last)
                    else:
                        outcome.ttft = now - sent
                    last = now
                if response.HasField("usage"):
                    outcome.prompt_tokens = response.usage.prompt_tokens
                    outcome.cached_tokens = response.usage.cached_tokens
                    new = response.usage.completion_tokens - outcome.tokens
                outcome.tokens += new
                self.second(now - self.begin)["output_tokens"] += new
                if 0 < turn.cancel_after <= outcome.tokens and not response.HasField("usage"):
                    call.cancel()
        except asyncio.CancelledError:  # what grpc.aio makes of call.cancel()
            if turn.cancel_after < 0:
                raise
            outcome.status, outcome.cancelled = "CANCELLED", True
        except grpc.aio.AioRpcError as error:
            outcome.status, outcome.error = error.code().name, error.details() or ""
            outcome.cancelled = outcome.status == "CANCELLED" and turn.cancel_after >= 0
        ended = time.perf_counter()
        outcome.latency = last - sent
        self.running -= 1
        self.second(ended - self.begin)["completed" if outcome.status == "OK" else "failed"] += 1
        if chat:
            messages.append(pb.Message(role="assistant", content=answer))

    async def session(self, session):
        history, messages, due = [], [], self.begin + session.at
        for turn in session.turns:
            if self.slots:
                await self.slots.acquire()
                due = max(due, time.perf_counter())
            outcome = Outcome()
            try:
                await self.request(turn, history, messages, due, outcome)
            finally:
                if self.slots:
                    self.slots.release()
            self.outcomes.append(outcome)
            if outcome.status != "OK":
                return
            await asyncio.sleep(self.args.turn_delay)
            due = time.perf_counter()

    async def progress(self):
        shown = -1
        while True:
            await asyncio.sleep(0.2)
            done, limit = len(self.outcomes), self.work.limit
            seconds = time.perf_counter() - self.begin
            share = done / limit if limit else min(seconds / self.args.duration, 1)
            rate = done / seconds
            text = f"{share:4.0%} | {done} requests | {rate:.0f} requests/s"
            if rate > 0:
                left = (limit - done) / rate if limit else self.args.duration - seconds
                text += f" | ETA {max(left, 0):.0f} s"
            if sys.stderr.isatty():
                print(f"\r\033[KBench {text}", end="", file=sys.stderr, flush=True)
            elif int(share * 10) != shown:
                shown = int(share * 10)
                print(f"Bench {text}", file=sys.stderr, flush=True)

    async def run(self):
        args, tasks = self.args, set()
        self.begin = time.perf_counter()
        cpu = time.process_time()
        bar = asyncio.create_task(self.progress())
        for session in self.work:
            wait = session.at - (time.perf_counter() - self.begin)
            # With a closed loop only those that can start soon are made.
            while args.max_concurrency and len(tasks) >= args.max_concurrency + 1:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if wait > 0:
                if args.duration and session.at >= args.duration:
                    break
                await asyncio.sleep(wait)
            if args.duration and time.perf_counter() - self.begin >= args.duration:
                break
            task = asyncio.create_task(self.session(session))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.gather(*tasks)
        bar.cancel()
        if sys.stderr.isatty():
            print(file=sys.stderr)
        duration = max(time.perf_counter() - self.begin, 1e-9)
        return figures.summary(args, self.outcomes, self.seconds, duration, self.peak, self.server,
                               time.process_time() - cpu)


def open_channel(args):
    options = [("grpc.max_receive_message_length", -1)]
    if args.server.startswith(("127.", "localhost:", "[::1]:", "unix:")):
        options.append(("grpc.enable_http_proxy", 0))
    if not (args.tls or args.ssl_ca_certs or args.ssl_certfile):
        return grpc.aio.insecure_channel(args.server, options=options)

    def read(path):
        return open(path, "rb").read() if path else None

    if args.tls_server_name:
        options.append(("grpc.ssl_target_name_override", args.tls_server_name))
    credentials = grpc.ssl_channel_credentials(read(args.ssl_ca_certs), read(args.ssl_keyfile),
                                               read(args.ssl_certfile))
    return grpc.aio.secure_channel(args.server, credentials, options=options)


async def measure(args):
    async with open_channel(args) as channel:
        stub = services.InferenceStub(channel)
        metadata = (("authorization", f"Bearer {args.api_key}"),) if args.api_key else ()
        try:
            while True:
                status = await stub.GetStatus(pb.GetStatusRequest(), metadata=metadata, timeout=10)
                if status.state != pb.SERVER_STATE_LOADING:
                    break
                print(f"the server is loading: {status.detail}", file=sys.stderr)
                await asyncio.sleep(1)
            server = await stub.GetModel(pb.GetModelRequest(), metadata=metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            sys.exit(f"load.py: error: {args.server}: {error.code().name}: {error.details()}")
        answered = True
        points = [{"request_rate": rate} for rate in args.request_rates] or [
            {"max_concurrency": at_once} for at_once in args.concurrencies] or [{}]
        for point in points:
            own = copy.copy(args)
            vars(own).update(point)
            tokens = {}
            if own.dataset_name == "sharegpt":
                for pairs in workload.read_sharegpt(own.dataset_path)[:2000]:
                    for text in (text for pair in pairs[:own.num_turns] for text in pair):
                        reply = await stub.Tokenize(pb.TokenizeRequest(text=text), metadata=metadata)
                        tokens[text] = list(reply.ids)
                own_tokenize = lambda text: tokens.get(text) or [0]  # noqa: E731
            else:
                own_tokenize = None
            room = 64 * own.num_turns if own.backend == "shoal-chat" else 0  # for the chat template
            work = workload.Workload(own, server.vocab_size, server.context_length - room,
                                     server.eos_token_ids, own_tokenize)
            if own.num_warmups:
                warm = Run(own, stub, metadata, server, work)
                await asyncio.gather(*[warm.session(workload.Session(0, [work.sample()]))
                                       for _ in range(own.num_warmups)])
            result = await Run(own, stub, metadata, server, work).run()
            print(figures.table(own, result), flush=True)
            if result["first_error"]:
                print(f"the first that failed: {result['first_error']}", file=sys.stderr)
            answered = answered and result["completed"] > 0
            if own.save_result:
                save(own, result, len(points) > 1)
        return 0 if answered else 1


def save(args, result, one_of_many):
    result["date"] = time.strftime("%Y%m%d-%H%M%S")
    point = "infqps" if math.isinf(args.request_rate) else f"{args.request_rate:g}qps"
    point += f"-concurrency{args.max_concurrency}" if args.max_concurrency else ""
    name = args.result_filename
    if not name:
        model = result["model_id"].rsplit("/", 1)[-1]
        name = f"{args.label or args.backend}-{point}-{model}-{result['date']}.json"
    elif one_of_many:
        stem, ending = os.path.splitext(name)
        name = f"{stem}-{point}{ending}"
    if args.result_dir:
        os.makedirs(args.result_dir, exist_ok=True)
    path = os.path.join(args.result_dir, name)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    print(f"wrote {path}", file=sys.stderr)


def numbers(kind):
    return lambda text: [kind(part) for part in text.split(",")]


def at_least(kind, low):
    def parse(text):
        value = kind(text)
        if not value >= low:
            raise argparse.ArgumentTypeError(f"{text}: at least {low}")
        return value
    return parse


def parse_args(words=None):
    parser = argparse.ArgumentParser(description="Loads a running Shoal server and says how it fared.")
    add = parser.add_argument
    add("--server", default="127.0.0.1:8000", help="host:port")
    add("--api-key", default=os.environ.get("SHOAL_API_KEY", ""))
    add("--tls", action="store_true")
    for name in ("--ssl-ca-certs", "--ssl-certfile", "--ssl-keyfile", "--tls-server-name"):
        add(name, default="")
    add("--backend", choices=("shoal", "shoal-chat"), default="shoal", help="Complete with ids, or Chat with text")
    add("--dataset-name", choices=("random", "lognormal", "sharegpt", "trace"), default="random")
    add("--dataset-path", default="")
    add("--num-prompts", type=at_least(int, 0), default=0, help="0: 1000, or without end under --duration")
    add("--random-input-len", "--input-len", type=at_least(int, 1), default=1024)
    add("--random-output-len", "--output-len", type=at_least(int, 1), default=128)
    add("--random-range-ratio", type=at_least(float, 0), default=0.0)
    add("--lognormal-sigma", type=float, default=1.0)
    add("--random-prefix-len", type=at_least(int, 0), default=0)
    add("--random-num-prefixes", type=at_least(int, 1), default=1)
    add("--num-turns", type=at_least(int, 1), default=1)
    add("--turn-delay", type=at_least(float, 0), default=0.0)
    add("--ignore-eos", action="store_true")
    add("--temperature", type=float, default=0.0)
    add("--seed", type=int, default=0)
    add("--request-rate", type=float, default=math.inf)
    add("--burstiness", type=float, default=1.0)
    add("--arrival", choices=("poisson", "constant", "burst"), default="poisson")
    add("--burst-size", type=at_least(int, 1), default=16)
    add("--trace-speedup", type=float, default=1.0)
    add("--max-concurrency", type=at_least(int, 0), default=0)
    add("--duration", type=at_least(float, 0), default=0.0)
    add("--num-warmups", type=at_least(int, 0), default=0)
    add("--request-rates", type=numbers(float), default=[])
    add("--concurrencies", type=numbers(int), default=[])
    add("--cancel-fraction", type=float, default=0.0)
    add("--deadline-ms", default="")
    add("--percentile-metrics", default="ttft,tpot,itl,e2el")
    add("--metric-percentiles", default="90,99")
    add("--goodput", nargs="*", default=[])
    add("--save-result", action="store_true")
    add("--result-dir", default="")
    add("--result-filename", default="")
    add("--label", default="")
    args = parser.parse_args(words)
    if args.dataset_name in ("sharegpt", "trace") and not args.dataset_path:
        parser.error(f"--dataset-name {args.dataset_name}: give its --dataset-path")
    if args.request_rates and args.concurrencies:
        parser.error("--request-rates and --concurrencies: give one of the two")
    if not args.request_rate > 0 or not args.burstiness > 0 or not args.trace_speedup > 0:
        parser.error("--request-rate, --burstiness and --trace-speedup are above 0")
    if args.random_range_ratio >= 1:
        parser.error("--random-range-ratio: less than 1")
    unknown = set(args.percentile_metrics.split(",")) - set(figures.METRICS)
    if unknown:
        parser.error(f"--percentile-metrics {unknown.pop()}: use ttft, tpot, itl or e2el")
    endless = args.duration and not args.num_prompts and args.dataset_name != "trace"
    if endless and not (args.max_concurrency or args.concurrencies or args.request_rates) and math.isinf(
            args.request_rate):
        parser.error("--duration: give --request-rate, --max-concurrency or --num-prompts too")
    return args


if __name__ == "__main__":
    sys.exit(asyncio.run(measure(parse_args())))
