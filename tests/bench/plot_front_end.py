"""Draws the --json of shoal_bench_front_end: python3 plot_front_end.py IN.json OUT.svg"""

import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

matplotlib.rcParams["svg.hashsalt"] = "shoal"  # the same numbers give the same file
rows = json.load(open(sys.argv[1]))["rows"]
figure, axes = plt.subplots(figsize=(7, 4))
streams = [row["streams"] for row in rows]
axes.plot(streams, [row["server_us_per_token"] for row in rows], "o-", label="front end", markersize=4)
axes.plot(streams, [row["client_us_per_token"] for row in rows], "s--", label="this client", markersize=4)
axes.axhline(20, color="grey", linewidth=0.8, linestyle=":", label="20 us")
axes.set_xscale("log")
axes.set_yscale("log")
axes.set_xlabel("streams at once")
axes.set_ylabel("CPU us for each streamed token")
axes.legend()
axes.grid(alpha=0.3, which="both")
figure.tight_layout()
figure.savefig(sys.argv[2], metadata={"Date": None})
