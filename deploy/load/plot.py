#!/usr/bin/env python3
"""Draws the JSON files of `shoal bench serve --save-result` or load.py as PNG.

    python3 plot.py results/*.json --out curves.png     # latency against throughput, a line for each label
    python3 plot.py one.json --series --out series.png  # the seconds of one run
"""

import argparse
import collections
import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

METRICS = (("ttft", "time to first token"), ("tpot", "time per output token"), ("e2el", "end to end"))


def load(paths):
    results = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        if "output_throughput" not in result:
            sys.exit(f"plot.py: error: {path}: not a result of shoal bench serve or load.py")
        results.append(result)
    return results


def curves(results, percentile):
    lines = collections.defaultdict(list)
    for result in results:
        lines[result.get("label") or result.get("model_id", "")].append(result)
    present = [(name, title) for name, title in METRICS if all(f"median_{name}_ms" in r for r in results)]
    if not present:
        sys.exit("plot.py: error: the results have none of ttft, tpot and e2el (--percentile-metrics)")
    figure, axes = plt.subplots(1, len(present), figsize=(5 * len(present), 4), squeeze=False)
    for axis, (name, title) in zip(axes[0], present):
        for label, runs in sorted(lines.items()):
            runs.sort(key=lambda r: r["output_throughput"])
            across = [r["output_throughput"] for r in runs]
            line, = axis.plot(across, [r[f"median_{name}_ms"] for r in runs], "o-", markersize=4,
                              label=f"{label} median")
            tail = f"p{percentile}_{name}_ms"
            if all(tail in r for r in runs):
                axis.plot(across, [r[tail] for r in runs], "^--", markersize=4, color=line.get_color(),
                          alpha=0.6, label=f"{label} p{percentile}")
            for r in runs:
                point = r.get("max_concurrency") or r.get("request_rate")
                axis.annotate(f"{point:g}" if isinstance(point, (int, float)) else str(point),
                              (r["output_throughput"], r[f"median_{name}_ms"]), fontsize=7,
                              textcoords="offset points", xytext=(3, 4))
        axis.set(title=title, xlabel="output tokens/s", ylabel="ms", ylim=(0, None), xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    return figure


def series(result):
    seconds = result["series"]
    across = [s["second"] for s in seconds]
    figure, axes = plt.subplots(3, 1, figsize=(8, 7), sharex=True)
    axes[0].plot(across, [s["output_tokens"] for s in seconds])
    axes[0].set_ylabel("output tokens/s")
    axes[1].plot(across, [s["concurrency"] for s in seconds])
    axes[1].set_ylabel("requests at once")
    for key in ("sent", "completed", "failed"):
        axes[2].plot(across, [s[key] for s in seconds], label=key)
    axes[2].legend()
    axes[2].set(xlabel="second", ylabel="requests/s")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    return figure


def main():
    parser = argparse.ArgumentParser(description="Draws results of shoal bench serve as PNG.")
    parser.add_argument("results", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--percentile", default="99", help="drawn beside the median")
    parser.add_argument("--series", action="store_true", help="the seconds of one run")
    args = parser.parse_args()
    results = load(args.results)
    if args.series and len(results) != 1:
        parser.error("--series draws one result")
    figure = series(results[0]) if args.series else curves(results, args.percentile)
    figure.tight_layout()
    figure.savefig(args.out, dpi=120)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
