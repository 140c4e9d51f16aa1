"""The figures of a run: the table and the JSON keys of `shoal bench serve`. No gRPC here."""

import collections
import math

METRICS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}


def percentile(values, p):
    """Of sorted values; linear between neighbours, as NumPy's default."""
    if not values:
        return 0.0
    place = p / 100 * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


def tpot(outcome):
    return (outcome.latency - outcome.ttft) / (outcome.tokens - 1) if outcome.tokens > 1 else 0.0


def summary(args, outcomes, seconds, duration, peak, server, cpu_seconds):
    """The JSON of a run. `outcomes`: load.py's Outcome; `seconds`: dicts of the per-second series."""
    done = [o for o in outcomes if o.status == "OK"]
    cancelled = sum(o.cancelled for o in outcomes)
    limits = {name: float(ms) / 1000 for name, ms in (pair.split(":") for pair in args.goodput)}
    values = {"ttft": [o.ttft for o in done], "tpot": [tpot(o) for o in done if o.tokens > 1],
              "itl": [gap for o in done for gap in o.itl], "e2el": [o.latency for o in done]}
    good = sum(all({"ttft": o.ttft, "tpot": tpot(o), "e2el": o.latency}[name] <= limit
                   for name, limit in limits.items()) for o in done)
    prompt, output = sum(o.prompt_tokens for o in done), sum(o.tokens for o in done)
    messages = sum(len(o.itl) + 1 for o in done)
    failed = [o for o in outcomes if o.status != "OK" and not o.cancelled]
    tokens = sum(o.tokens for o in outcomes)
    result = {
        "client": "deploy/load/load.py", "backend": args.backend, "label": args.label, "model_id": server.name,
        "dataset_name": args.dataset_name, "num_prompts": len(outcomes),
        "request_rate": "inf" if math.isinf(args.request_rate) else args.request_rate,
        "burstiness": args.burstiness, "max_concurrency": args.max_concurrency or None,
        "interrupted": False, "duration": duration,
        "completed": len(done), "failed": len(failed), "cancelled": cancelled,
        "total_input_tokens": prompt, "total_output_tokens": output,
        "total_cached_tokens": sum(o.cached_tokens for o in done),
        "request_throughput": len(done) / duration, "request_goodput": good / duration if limits else None,
        "output_throughput": output / duration, "total_token_throughput": (prompt + output) / duration,
        "max_output_tokens_per_s": float(max((s["output_tokens"] for s in seconds), default=0)),
        "max_concurrent_requests": peak, "tokens_per_message": output / messages if messages else 0.0,
    }
    for name in args.percentile_metrics.split(","):
        add_figures(result, name, values[name], args)
    add_figures(result, "send_lag", [o.lag for o in outcomes], args)
    result["client_cpu_us_per_token"] = cpu_seconds * 1e6 / tokens if tokens else 0.0
    result["status_counts"] = dict(collections.Counter(o.status for o in outcomes))
    result["first_error"] = f"{failed[0].status}: {failed[0].error}" if failed else ""
    result["series"] = seconds
    return result


def add_figures(result, name, values, args):
    values = sorted(values)
    mean = sum(values) / len(values) if values else 0.0
    result[f"mean_{name}_ms"] = mean * 1000
    result[f"median_{name}_ms"] = percentile(values, 50) * 1000
    result[f"std_{name}_ms"] = 1000 * math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values), 1))
    for p in args.metric_percentiles.split(","):
        result[f"p{float(p):g}_{name}_ms"] = percentile(values, float(p)) * 1000


def table(args, result):
    def line(label, value):
        return f"{label:<40} {value:<10.2f}" if isinstance(value, float) else f"{label:<40} {value:<10}"

    lines = [f"{' Serving Benchmark Result ':=^50}",
             line("Successful requests:", result["completed"]), line("Failed requests:", result["failed"])]
    if result["cancelled"]:
        lines.append(line("Cancelled requests:", result["cancelled"]))
    if args.max_concurrency:
        lines.append(line("Maximum request concurrency:", args.max_concurrency))
    if not math.isinf(args.request_rate):
        lines.append(line("Request rate configured (RPS):", args.request_rate))
    lines += [line("Benchmark duration (s):", result["duration"]),
              line("Total input tokens:", result["total_input_tokens"]),
              line("Total generated tokens:", result["total_output_tokens"]),
              line("Request throughput (req/s):", result["request_throughput"])]
    if args.goodput:
        lines.append(line("Request goodput (req/s):", result["request_goodput"]))
    lines += [line("Output token throughput (tok/s):", result["output_throughput"]),
              line("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"]),
              line("Peak concurrent requests:", float(result["max_concurrent_requests"])),
              line("Total token throughput (tok/s):", result["total_token_throughput"])]
    for name in args.percentile_metrics.split(","):
        short, title = METRICS[name]
        lines += [f"{title:-^50}", line(f"Mean {short} (ms):", result[f"mean_{name}_ms"]),
                  line(f"Median {short} (ms):", result[f"median_{name}_ms"])]
        for p in args.metric_percentiles.split(","):
            p = f"{float(p):g}"
            lines.append(line(f"P{p} {short} (ms):", result[f"p{p}_{name}_ms"]))
    return "\n".join(lines + ["=" * 50])
