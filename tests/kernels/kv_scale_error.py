"""How large the errors of a quantised latent are with one scale per row of 512 and one per 128 columns:
the table of docs/kernels.md, "KV cache formats". Needs numpy and torch.

Rows of normal values (what a norm leaves), of normal values times a weight per column that is
log-normal (what trained norms look like), and with a few columns 20 times as large.
"""
import numpy as np
import torch


def quantise(x, kind):
    largest = np.abs(x).max(axis=-1, keepdims=True)
    limit = np.float32(448 if kind == "fp8" else 127)
    y = x * (limit / largest)
    codes = torch.from_numpy(y).to(torch.float8_e4m3fn).float().numpy() if kind == "fp8" else np.rint(y)
    return codes * (largest / limit)


def main():
    random = np.random.default_rng(1)
    rows, width = 4000, 512
    normal = random.standard_normal((rows, width), dtype=np.float32)
    weights = np.exp(random.standard_normal(width, dtype=np.float32))
    outliers = np.ones(width, dtype=np.float32)
    outliers[random.permutation(width)[:4]] = 20
    print("| latent | fp8, a row | fp8, 128 | int8, a row | int8, 128 |\n| --- | --- | --- | --- | --- |")
    for name, x in (("normal", normal), ("columns of unequal size", normal * weights),
                    ("4 columns 20 times as large", normal * outliers)):
        cells = []
        for kind in ("fp8", "int8"):
            for group in (width, 128):
                y = quantise(x.reshape(rows, -1, group), kind).reshape(rows, width)
                cells.append(f"{100 * np.sqrt(np.mean((y - x) ** 2) / np.mean(x ** 2)):.2f} %")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
