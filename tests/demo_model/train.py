"""Trains the demo model on freshly generated dialogues. Run by train.sh.

Muon for the matrices, AdamW for embeddings, head, router and norms. The learning rate is constant, then falls
linearly to zero; in the last part the forward pass sees the weights as FP8 will store them (straight-through).
The router's correction bias follows the load of the experts (DeepSeek-V3's rule), without a gradient.
"""

import argparse
import json
import os
import random
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import generate
from model import Model
from quantise import fake_quantised
from tokenizer import make_tokenizer, save_tokenizer

WARMUP, DECAY_FROM, QUANTISE_FROM = 0.02, 0.35, 0.85  # as parts of the training
MUON_RATE, EMBED_RATE, HEAD_RATE, SMALL_RATE = 0.02, 0.01, 0.003, 0.003
WEIGHT_DECAY = 0.02  # of the matrices, per unit of learning rate
BIAS_STEP = 0.001  # gamma of the load balancing
MTP_WEIGHT = 0.3


class Encoder:
    """Dialogues to token ids with a mark on the learned ones. Pieces end at special tokens, so each stands alone."""

    def __init__(self, tokenizer):
        self.tokenizer, self.cache = tokenizer, {}

    def piece(self, text):
        if text not in self.cache:
            if len(self.cache) > 200000:
                self.cache.clear()
            self.cache[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.cache[text]

    def __call__(self, pieces):
        ids, learned = [], []
        for text, is_learned in pieces:
            part = self.piece(text)
            ids += part
            learned += [is_learned] * len(part)
        return ids, learned


def rectangles(examples, count):
    """Splits examples of (ids, learned), sorted by length, into padded batches; returns flat tensors and shapes."""
    examples = sorted(examples, key=lambda e: len(e[0]))
    ids, learned, shapes = [], [], []
    size = -(-len(examples) // count)
    for start in range(0, len(examples), size):
        group = examples[start : start + size]
        length = len(group[-1][0])
        for row, marks in group:
            ids += row + [2] * (length - len(row))
            learned += marks + [False] * (length - len(row))
        shapes.append((len(group), length))
    return torch.tensor(ids), torch.tensor(learned), shapes


def shifted(x, shapes, by, fill):
    """Each row moved left by some tokens."""
    result, start = [], 0
    for batch, length in shapes:
        part = x[start : start + batch * length].view(batch, length)
        start += batch * length
        result.append(F.pad(part[:, by:], (0, by), value=fill).flatten())
    return torch.cat(result)


def batches(seed, encode, tokens):
    rng, pending, size = random.Random(seed), [], 0
    while True:
        example = encode(generate.segments(rng, generate.dialogue(rng)))
        pending.append(example)
        size += len(example[0])
        if size >= tokens:
            yield rectangles(pending, 8)
            pending, size = [], 0


def losses(model, ids, learned, shapes):
    hidden = model.hidden(ids, shapes)
    next_ids = shifted(ids, shapes, 1, 2)
    at = shifted(learned, shapes, 1, False).nonzero().squeeze(1)
    main = F.cross_entropy(model.lm_head(hidden[at]).float(), next_ids[at])
    later = model.mtp_hidden(hidden, next_ids, shapes)
    at = shifted(learned, shapes, 2, False).nonzero().squeeze(1)
    mtp = F.cross_entropy(model.lm_head(later[at]).float(), shifted(ids, shapes, 2, 2)[at])
    return main, mtp


def orthogonalised(g, steps=5):
    """Newton-Schulz iteration towards the nearest orthogonal matrix, batched. g: [count, rows, columns]."""
    x = g.transpose(1, 2) if g.shape[1] > g.shape[2] else g
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.float()
    return x.transpose(1, 2) if g.shape[1] > g.shape[2] else x


class Muon:
    """Momentum whose step is orthogonalised; matrices of one shape are worked on together."""

    def __init__(self, parameters):
        self.groups = {}
        for p in parameters:
            self.groups.setdefault(tuple(p.shape[-2:]), []).append(p)
        self.momentum = {shape: None for shape in self.groups}

    @torch.no_grad()
    def step(self, rate):
        for shape, parameters in self.groups.items():
            grad = torch.cat([p.grad.view(-1, *shape) for p in parameters])
            if self.momentum[shape] is None:
                self.momentum[shape] = torch.zeros_like(grad)
            self.momentum[shape].lerp_(grad, 0.05)
            update = orthogonalised(grad.lerp(self.momentum[shape], 0.95))
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for p, u in zip(parameters, update.split([p.numel() // (shape[0] * shape[1]) for p in parameters])):
                p.mul_(1 - rate * WEIGHT_DECAY).add_(u.view_as(p), alpha=-rate * scale)


def make_optimizers(model):
    matrices, small = [], []
    for name, p in model.named_parameters():
        if name in ("embed_tokens.weight", "lm_head.weight"):
            continue
        (matrices if p.dim() > 1 and "gate.weight" not in name else small).append(p)
    adam = torch.optim.AdamW(
        [
            {"params": [model.embed_tokens.weight], "lr": EMBED_RATE},
            {"params": [model.lm_head.weight], "lr": HEAD_RATE},
            {"params": small, "lr": SMALL_RATE},
        ],
        betas=(0.9, 0.95), weight_decay=0.0,
    )
    for group in adam.param_groups:
        group["peak"] = group["lr"]
    return Muon(matrices), adam


@torch.no_grad()
def examine(model, encode):
    """Share of examination dialogues whose last answer greedy decoding would reproduce word for word."""
    result = {}
    for split, exam in (("trained", False), ("held-out sums", True), ("held-out names", True)):
        rng, examples = random.Random(5), []
        for _ in range(120):
            if split == "held-out sums":
                dialogue = generate.Dialogue("", [generate.sum_turn(rng, exam)])
            else:
                dialogue = generate.memory_dialogue(rng, exam) if exam else generate.dialogue(rng)
            pieces = generate.segments(rng, dialogue)
            examples.append(encode([(text, i == len(pieces) - 1) for i, (text, _) in enumerate(pieces)]))
        ids, learned, shapes = rectangles(examples, 6)
        hidden = model.hidden(ids, shapes)
        next_ids, at = shifted(ids, shapes, 1, 2), shifted(learned, shapes, 1, False)
        wrong = (model.lm_head(hidden).argmax(-1) != next_ids) & at
        guess = model.lm_head(model.mtp_hidden(hidden, next_ids, shapes)).argmax(-1)
        at2 = shifted(learned, shapes, 2, False)
        right, start = 0, 0
        for batch, length in shapes:
            part = wrong[start : start + batch * length].view(batch, length)
            right += int((~part.any(1)).sum())
            start += batch * length
        result[split] = round(right / len(examples), 3)
        if split == "trained":
            result["mtp"] = round(float((guess == shifted(ids, shapes, 2, 2))[at2].float().mean()), 3)
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True, help="folder for tokenizer, checkpoint.pt and log.jsonl")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, default=110, help="the schedule hurries so as to end by then")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 products (faster with AVX512-BF16)")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    os.makedirs(args.out, exist_ok=True)
    model = Model()
    if not os.path.exists(os.path.join(args.out, "tokenizer.json")):
        save_tokenizer(make_tokenizer(model.config.vocab_size), args.out, model.config.max_position_embeddings)
    encode = Encoder(Tokenizer.from_file(os.path.join(args.out, "tokenizer.json")))
    muon, adam = make_optimizers(model)
    log = open(os.path.join(args.out, "log.jsonl"), "w", encoding="utf-8")

    def save():
        path = os.path.join(args.out, "checkpoint.pt")
        torch.save(model.state_dict(), path + ".tmp")
        os.replace(path + ".tmp", path)

    save()
    start, last_save, seen, totals = time.time(), time.time(), 0, torch.zeros(2)
    for step, (ids, learned, shapes) in enumerate(batches(args.seed, encode, args.tokens)):
        progress = max(step / args.steps, (time.time() - start) / 60 / args.minutes)
        if progress >= 1:
            break
        rate = min(1, progress / WARMUP, (1 - progress) / (1 - DECAY_FROM))
        with fake_quantised(model, progress >= QUANTISE_FROM):
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                main_loss, mtp_loss = losses(model, ids, learned, shapes)
            (main_loss + MTP_WEIGHT * mtp_loss).backward()
        for group in adam.param_groups:
            group["lr"] = group["peak"] * rate
        muon.step(MUON_RATE * rate)
        adam.step()
        adam.zero_grad(set_to_none=True)
        for p in model.parameters():
            p.grad = None
        for gate in model.gates():
            load = gate.load.float()
            gate.e_score_correction_bias += BIAS_STEP * min(1, 2 * rate) * (load.mean() - load).sign()
        seen += len(ids)
        totals += torch.tensor([main_loss.item(), mtp_loss.item()])
        if (step + 1) % 50 == 0:
            line = {"step": step + 1, "minutes": round((time.time() - start) / 60, 2), "tokens": seen,
                    "loss": round(totals[0].item() / 50, 4), "mtp_loss": round(totals[1].item() / 50, 4)}
            totals.zero_()
            if (step + 1) % 250 == 0:
                line |= examine(model, encode)
                line["load"] = round(max(float(g.load.max() / g.load.float().mean()) for g in model.gates()), 2)
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
        if time.time() - last_save > 120:
            save()
            last_save = time.time()
    save()
    with fake_quantised(model, True):
        print("final, as stored:", json.dumps(examine(model, encode)))


if __name__ == "__main__":
    main()
