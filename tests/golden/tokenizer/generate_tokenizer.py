#!/usr/bin/env python3
"""Small tokenizers of the DeepSeek, Llama 3 and Qwen kind, and golden ids from Hugging Face tokenizers.

    generate_tokenizer.py --data DIR --train   train the three small tokenizer.json files, then golden ids
    generate_tokenizer.py                      golden ids for the committed tokenizer.json files
    generate_tokenizer.py --check              encode the committed strings again and compare
    generate_tokenizer.py --encode FILE --ids OUT.gz   ids of the same strings by any tokenizer.json

DIR holds the real tokenizers (deepseek-v3-tokenizer/ and so on): their normalizer, pre_tokenizer,
post_processor, decoder and kinds of added tokens are taken over, only vocabulary and merges are new.
"""

import argparse
import gzip
import importlib
import inspect
import json
import pathlib
import random
import sys
import unicodedata

from sample_text import CODE, SENTENCES
from tokenizers import Tokenizer, trainers
from tokenizers.pre_tokenizers import ByteLevel

HERE = pathlib.Path(__file__).parent
FAMILIES = {"deepseek": "deepseek-v3-tokenizer", "llama3": "llama3-tokenizer", "qwen": "qwen3-tokenizer"}
VOCAB = 3000

# ---------------------------------------------------------------------------------------------
# Training


DOCUMENTED = """argparse asyncio collections json logging os random re socket statistics string subprocess
threading typing unittest urllib.parse""".split()


def corpus():
    yield from SENTENCES * 4
    yield from CODE * 4
    for module in map(importlib.import_module, DOCUMENTED):
        for _, member in sorted(vars(module).items()):
            doc = inspect.getdoc(member) if callable(member) else None
            if doc:
                yield doc


def train(family: str, data: pathlib.Path) -> None:
    real = json.loads((data / FAMILIES[family] / "tokenizer.json").read_text(encoding="utf-8"))
    added = real["added_tokens"]
    # Tokens below the vocabulary (DeepSeek's ids 0 to 2) stay in front of it, the rest behind. Of
    # hundreds of reserved placeholders a few do.
    front = [token for token in added if token["id"] < 100]
    back = [token for token in added if token["id"] >= 100]
    placeholder = [t for t in back if "holder" in t["content"] or "reserved" in t["content"]]
    back = [t for t in back if t not in placeholder[6:]]

    blank = dict(
        real,
        added_tokens=[],
        post_processor=None,
        decoder=None,
        model=dict(real["model"], vocab={}, merges=[]),
    )
    tokenizer = Tokenizer.from_str(json.dumps(blank))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[token["content"] for token in front],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    # Keys in the real file's own order; its merges are strings ("a b") or pairs, as it has them.
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if real["model"].get("ignore_merges"):
        # Real Llama 3 has vocabulary entries that a whole piece reaches only because merges are
        # ignored for it: dropping the last merges makes such entries.
        merges = merges[:-300]
    if isinstance(real["model"]["merges"][0], str):
        merges = [" ".join(pair) for pair in merges]
    real["model"].update(vocab=model["vocab"], merges=merges)
    size = len(model["vocab"])
    for index, token in enumerate(front):
        assert model["vocab"][token["content"]] == index
        token["id"] = index
    for index, token in enumerate(back):
        token["id"] = size + index
    real["added_tokens"] = front + back
    (HERE / f"{family}.tokenizer.json").write_text(
        json.dumps(real, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )


# ---------------------------------------------------------------------------------------------
# Strings

SCRIPTS = """0041-024F 0250-02AF 0300-036F 0370-03FF 0400-052F 0531-058F 0591-05F4 0600-06FF 0700-074F 0750-077F
0780-07BF 07C0-07FA 0900-097F 0980-09FF 0A00-0A7F 0A80-0AFF 0B00-0B7F 0B80-0BFF 0C00-0C7F 0C80-0CFF 0D00-0D7F
0D80-0DFF 0E00-0E5B 0E80-0EDF 0F00-0FDA 1000-109F 10A0-10FF 1100-11FF 1200-139F 13A0-13FD 1400-167F 1680-169C
16A0-16F8 1700-173F 1780-17F9 1800-18AA 1900-194F 1950-19DF 1A00-1A1F 1B00-1B7F 1C00-1C4F 1D00-1DBF 1E00-1FFE
2000-206F 2070-20BF 2100-218B 2190-23FF 2400-24FF 2500-27BF 2800-28FF 2900-2BFF 2C00-2C5F 2C80-2CFF 2D00-2DDF
2E00-2E4F 2E80-2FDF 3000-303F 3041-30FF 3105-312F 3131-31FF 3200-33FF 3400-4DB5 4E00-9FA5 9FA6-9FEF A000-A4CF
A500-A6F7 A700-A7BF A800-A87F A880-A8FF A900-A95F A960-A9DF AA00-AADF AB00-ABF9 AC00-D7A3 F900-FAFF FB00-FB4F
FB50-FDFF FE20-FE6F FF01-FFEE 10000-100FA 10280-1031F 10330-103D5 10400-1049D 10800-1083F 10900-1091F 10A00-10A58
11000-1106F 11080-110C1 12000-1236E 13000-1342E 16800-16A38 1B000-1B11E 1D100-1D1E8 1D400-1D7FF 1E900-1E95F
1EE00-1EEF1 1F000-1F0FF 1F100-1F1FF 20000-2A6D6 E000-F8FF E0100-E01EF""".split()

SPACES = [
    chr(c)
    for c in (
        9,
        10,
        11,
        12,
        13,
        0x1C,
        0x1D,
        0x1E,
        0x1F,
        32,
        0x85,
        0xA0,
        0x1680,
        0x180E,
        *range(0x2000, 0x2010),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x2060,
        0x3000,
        0xFEFF,
    )
]
EMOJI = "😀 🤣 👍 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🏴‍☠️ 🇩🇪 🇺🇸🇫🇷 🇯 1️⃣ #️⃣ ❤️ ❤ ☺︎ 👨🏿‍💻 🧑‍🚀 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🫠 ✈️ ⌚ ™️ © 🀄 🃏 👁️‍🗨️ 🤷🏻‍♀️".split(
    " "
)
WORDS = "the of user function Return value x y1 fooBar snake_case HTTPServer don't I'll É été naïve Straße ΑΒΓ привет 你好 こんにちは カタカナ 안녕 مرحبا שלום नमस्ते สวัสดี".split()
SUFFIXES = [
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "'S",
    "'T",
    "'RE",
    "'Ve",
    "'M",
    "'LL",
    "'D",
    "'\u017f",
    "\u2019s",
    "''s",
    "'x",
    "'l",
    "'",
]


def strings(special: list[str]) -> list[str]:
    rng = random.Random(20240607)
    pick, out = rng.choice, []

    def chars(low, high, count):
        made = []
        while len(made) < count:
            c = chr(rng.randint(low, high))
            # Unassigned code points are classed differently by each Unicode version: not our subject.
            if unicodedata.category(c) not in ("Cn", "Cs"):
                made.append(c)
        return "".join(made)

    def script():
        low, high = (int(part, 16) for part in pick(SCRIPTS).split("-"))
        return chars(low, high, rng.randint(1, 7))

    def cut(text, most=32):
        start = rng.randrange(len(text))
        return text[start : start + rng.randint(1, most)]

    def spaces():
        return (
            pick([" ", "\n", "\t", "\r\n", " \n", "\n\n"]) * rng.randint(1, 6)
            if rng.random() < 0.6
            else "".join(pick(SPACES) for _ in range(rng.randint(1, 4)))
        )

    def digits():
        zero = pick([0x30] * 8 + [0x660, 0x966, 0x9E6, 0xFF10, 0x1D7CE])
        run = "".join(chr(zero + rng.randrange(10)) for _ in range(rng.randint(1, 13)))
        return (
            run
            if rng.random() < 0.5
            else run[:3] + pick([",", ".", "_", "-", " ", "e", "²", "½", "Ⅷ", ":", "/", "%"]) + run[3:]
        )

    def code():
        return cut(pick(CODE))

    def emoji():
        return "".join(pick(EMOJI) for _ in range(rng.randint(1, 3)))

    def contraction():
        return pick(WORDS) + pick(SUFFIXES) + pick(["", " ", "x", "s"])

    def punctuation():
        return "".join(
            pick("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»…—‘’“”¿¡、。「」！？€£¥§±×÷≠∞→")
            for _ in range(rng.randint(1, 6))
        )

    def marks():
        base = pick(
            [
                "e",
                "a",
                "O",
                "ñ",
                "ữ",
                "Å",
                "ﬁ",
                "각",
                "か",
                "ก",
                "क",
                "\u1112\u1161\u11ab",
                "\u0344",
                "Ω",
                "K",
            ]
        )
        text = (
            base
            + "".join(chr(rng.randint(0x300, 0x345)) for _ in range(rng.randint(0, 3)))
            + pick(["", "x", " ", "が", "\u3099"])
        )
        return (
            unicodedata.normalize(pick(["NFC", "NFD", "NFKC", "NFKD"]), text) if rng.random() < 0.5 else text
        )

    def word():
        return pick([" ", "", "", "\n", "-"]) + pick(WORDS)

    def with_special():
        return (
            pick(["", " ", "a", "\n", "1"])
            + pick(special)
            + pick(["", " ", "b", "\n", "2", pick(special), "<|", "｜>"])
        )

    kinds = [
        (script, 2200),
        (lambda: cut(pick(SENTENCES), 48), 1800),
        (code, 700),
        (digits, 700),
        (emoji, 400),
        (contraction, 500),
        (punctuation, 500),
        (marks, 700),
        (with_special, 700),
    ]
    out += ["", *map(chr, range(0x250)), *SPACES, *(s + "a" for s in SPACES), *("a" + s for s in SPACES)]
    out += (
        ["a" * n for n in (2, 3, 7, 64, 500)]
        + [" " * n for n in (2, 3, 7, 64, 300)]
        + ["\n" * n for n in (2, 3, 9, 40)]
    )
    out += (
        [token for token in special] + [token[:-1] for token in special] + [token + " x" for token in special]
    )
    for kind, count in kinds:
        out += [kind() for _ in range(count)]
    out += [pick(WORDS) + spaces() + pick(WORDS + ["", "1", "."]) + pick(["", spaces()]) for _ in range(900)]
    parts = [script, code, digits, emoji, contraction, punctuation, marks, word, word, spaces, with_special]
    out += ["".join(pick(parts)() for _ in range(rng.randint(2, 4))) for _ in range(1800)]
    return list(dict.fromkeys(out))


def invalid_utf8() -> list[bytes]:
    """Byte strings that are no UTF-8; their golden ids are those of bytes.decode(errors="replace")."""
    rng = random.Random(5)
    out = [
        b"\xff",
        b"a\x80b",
        b"\xc3",
        b"\xc3(",
        b"\xe2\x82",
        b"\xe2\x82z",
        b"\xf0\x9f\x98",
        b"\xf0\x9f\x98\xf0\x9f\x98\x80",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf.",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xe0\x80\xaf",
        b"\xfe\xff",
    ]
    while len(out) < 300:
        data = bytearray((rng.choice(SENTENCES)[rng.randrange(40) :][: rng.randint(1, 9)]).encode())
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(128, 256)
        if rng.random() < 0.3:
            data = data[: rng.randint(1, len(data))]
        try:
            data.decode()
        except UnicodeDecodeError:
            out.append(bytes(data))
    return list(dict.fromkeys(out))


# ---------------------------------------------------------------------------------------------
# Golden files


def text_of(line) -> str:
    return line if isinstance(line, str) else bytes.fromhex(line["hex"]).decode("utf-8", errors="replace")


def encode_lines(path: pathlib.Path, lines: list) -> str:
    """One line a string: the ids; then, where they differ, a tab and the ids with special tokens taken as text."""
    tokenizer = Tokenizer.from_file(str(path))
    texts = [text_of(line) for line in lines]

    def ids(special_as_text):
        tokenizer.encode_special_tokens = special_as_text
        return [" ".join(map(str, e.ids)) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return "".join(a + ("" if a == b else "\t" + b) + "\n" for a, b in zip(ids(False), ids(True)))


def write_gz(path: pathlib.Path, text: str) -> None:
    # No name and no time inside, so the same text gives the same file.
    path.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


def read_gz(path: pathlib.Path) -> str:
    return gzip.decompress(path.read_bytes()).decode("utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--encode", type=pathlib.Path)
    parser.add_argument("--ids", type=pathlib.Path)
    args = parser.parse_args()
    stored = HERE / "strings.jsonl.gz"
    if args.encode:
        lines = [json.loads(line) for line in read_gz(stored).splitlines()]
        write_gz(args.ids, encode_lines(args.encode, lines))
        return 0
    if args.check:
        lines = [json.loads(line) for line in read_gz(stored).splitlines()]
        bad = [
            f
            for f in FAMILIES
            if encode_lines(HERE / f"{f}.tokenizer.json", lines) != read_gz(HERE / f"{f}.ids.gz")
        ]
        print(f"{len(lines)} strings, tokenizers that differ: {bad or 'none'}")
        return 1 if bad else 0
    if args.train:
        for family in FAMILIES:
            train(family, args.data)
    special = []
    for family in FAMILIES:
        tokens = json.loads((HERE / f"{family}.tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        special += [token["content"] for token in tokens]
    lines = strings(list(dict.fromkeys(special))) + [{"hex": data.hex()} for data in invalid_utf8()]
    # ensure_ascii: each string is one plain line whatever line separators it holds.
    write_gz(stored, "".join(json.dumps(line) + "\n" for line in lines))
    for family in FAMILIES:
        write_gz(HERE / f"{family}.ids.gz", encode_lines(HERE / f"{family}.tokenizer.json", lines))
    print(f"{len(lines)} strings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
