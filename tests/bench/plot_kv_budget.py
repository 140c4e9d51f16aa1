"""Draws the --json of shoal_bench_kv_budget: python3 plot_kv_budget.py IN.json OUT.svg"""

import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

matplotlib.rcParams["svg.hashsalt"] = "shoal"  # the same numbers give the same file
rows = json.load(open(sys.argv[1]))["rows"]
figure, axes = plt.subplots(figsize=(7, 4))
for mode, style in (("recompute", "o--"), ("swap", "s--"), ("auto", "D-")):
    mine = [row for row in rows if row["mode"] == mode]
    axes.plot([row["budget"] for row in mine], [row["tokens_per_second"] for row in mine], style,
              label=mode, markersize=4)
axes.set_xscale("log", base=2)
axes.set_ylim(bottom=0)
axes.set_xlabel("tokens that the KV cache holds")
axes.set_ylabel("generated tokens/s")
axes.legend(title="--preemption-mode")
axes.grid(alpha=0.3)
figure.tight_layout()
figure.savefig(sys.argv[2], metadata={"Date": None})
