#include "server/metrics/metric_list.h"

#include "kernels/base/error.h"

namespace shoal {
namespace {

constexpr MetricKind kCounter = MetricKind::kCounter, kGauge = MetricKind::kGauge,
                     kHistogram = MetricKind::kHistogram;

constexpr MetricInfo kMetrics[] = {
    {"vllm:num_requests_running", kGauge, "", "Requests (samples) in the running batch"},
    {"vllm:num_requests_waiting", kGauge, "", "Requests that wait for a place in the batch"},
    {"vllm:kv_cache_usage_perc", kGauge, "", "Pages of the KV cache in use; 1 is all of them"},
    {"vllm:gpu_cache_usage_perc", kGauge, "", "kv_cache_usage_perc by its former name"},
    {"vllm:prefix_cache_queries_total", kCounter, "", "Prompt tokens looked up in the prefix cache"},
    {"vllm:prefix_cache_hits_total", kCounter, "", "Prompt tokens found in the prefix cache"},
    {"vllm:num_preemptions_total", kCounter, "", "Running requests that gave their pages to others"},
    {"vllm:prompt_tokens_total", kCounter, "",
     "Prompt tokens computed; cached ones not counted, recomputed ones counted again"},
    {"vllm:generation_tokens_total", kCounter, "", "Tokens generated"},
    {"vllm:request_success_total", kCounter, "finished_reason",
     "Samples that ended, by stop, length or abort (cancelled, deadline, failed)"},
    {"vllm:time_to_first_token_seconds", kHistogram, "", "Seconds from a call's arrival to its first token"},
    {"vllm:inter_token_latency_seconds", kHistogram, "", "Seconds between tokens of a sample"},
    {"vllm:time_per_output_token_seconds", kHistogram, "", "inter_token_latency_seconds by its former name"},
    {"vllm:request_time_per_output_token_seconds", kHistogram, "",
     "Of a call, seconds per token of a sample after the first"},
    {"vllm:e2e_request_latency_seconds", kHistogram, "", "Seconds from a call's arrival to its end"},
    {"vllm:request_queue_time_seconds", kHistogram, "",
     "Seconds from a request's arrival at the engine to its first step"},
    {"vllm:request_inference_time_seconds", kHistogram, "", "Seconds from the first step to the last token"},
    {"vllm:request_prefill_time_seconds", kHistogram, "", "Seconds from the first step to the first token"},
    {"vllm:request_decode_time_seconds", kHistogram, "", "Seconds from the first token to the last"},
    {"vllm:request_prompt_tokens", kHistogram, "", "Prompt tokens of a call"},
    {"vllm:request_generation_tokens", kHistogram, "", "Tokens that a call generated, all samples"},
    {"vllm:request_params_n", kHistogram, "", "n of a call"},
    {"vllm:request_params_max_tokens", kHistogram, "", "max_tokens of a call"},
    {"vllm:iteration_tokens_total", kHistogram, "", "Tokens of a step"},
    {"vllm:cache_config_info", kGauge,
     "block_size, cache_dtype, enable_prefix_caching, num_gpu_blocks", "1; the labels say it"},

    {"shoal_build_info", kGauge, "version", "1; the label says it"},
    {"shoal_state", kGauge, "state",
     "1 for the state that the server is in: loading, ready, restarting, failed, draining"},
    {"shoal_load_ratio", kGauge, "", "Part of the checkpoint that rank 0 has read; 1: all"},
    {"shoal_load_seconds", kGauge, "", "Seconds that the last load took"},
    {"shoal_calls_accepted_total", kCounter, "", "Calls of Chat and Complete that were accepted"},
    {"shoal_calls_ended_total", kCounter, "method, code", "Accepted calls that ended, by gRPC status"},
    {"shoal_calls_refused_total", kCounter, "method, code, reason",
     "Calls that were refused before they began, by gRPC status and why: queue_full, client_rate, "
     "client_sequences, deadline, loading, invalid_argument, .."},
    {"shoal_calls_open", kGauge, "", "Accepted calls that have not ended"},
    {"shoal_sequences_alive", kGauge, "", "Samples that the queue's limit counts"},
    {"shoal_stream_pending_bytes", kGauge, "", "Output that is ready and not taken by its readers, bytes"},
    {"shoal_client_calls_total", kCounter, "client, code", "Calls that ended or were refused, by API key"},
    {"shoal_client_tokens_total", kCounter, "client, kind",
     "Tokens by API key; kind: prompt, cached (of those), generated"},
    {"shoal_kv_pages", kGauge, "state", "Pages of the KV cache: used, total"},
    {"shoal_kv_page_moves_total", kCounter, "kind",
     "Pages: swapped_out, swapped_in, spilled, restored (host memory), saved, loaded (files)"},
    {"shoal_engine_restarts_total", kCounter, "", "Times that the ranks were started again"},
    {"shoal_engine_steps_total", kCounter, "", "Steps"},
    {"shoal_step_seconds", kHistogram, "", "Seconds of a step"},
    {"shoal_rank_steps_total", kCounter, "rank", "Steps of a rank"},
    {"shoal_rank_step_seconds_total", kCounter, "rank", "Seconds that a rank spent in steps"},
    {"shoal_rank_collective_seconds_total", kCounter, "rank",
     "Of those, seconds in exchanges with other ranks, waiting included (CPU ranks)"},
    {"shoal_rank_sent_bytes_total", kCounter, "rank, verb",
     "Bytes that a rank sent to others: all_reduce, all_gather, reduce_scatter, all_to_all, gather; without "
     "what recorded graphs send"},
    {"shoal_rank_resident_bytes", kGauge, "rank", "Host memory of a rank's process, bytes"},
    {"shoal_rank_expert_rows_total", kCounter, "rank",
     "Token rows that a rank's routed experts were given (CPU ranks, or experts off the device)"},
    {"shoal_memory_planned_bytes", kGauge, "rank, use", "Device memory that the plan has for a use, bytes"},
    {"shoal_memory_taken_bytes", kGauge, "rank, use", "The most that it has taken so far, bytes"},
    {"shoal_expert_imbalance", kGauge, "over",
     "Rows of the busiest over the mean, in about the last ten seconds of work; 1 is even: layers (mean over "
     "layers of the busiest expert), worst_layer, ranks"},
    {"shoal_experts_idle", kGauge, "", "(layer, expert) pairs never chosen since start"},
    {"shoal_experts", kGauge, "home", "Routed experts of rank 0 by where they live: device, host, disk"},
    {"shoal_expert_bytes_total", kCounter, "kind",
     "Bytes of rank 0's experts off the device: streamed, read_by_cpu, read_from_disk"},
    {"shoal_expert_moves_total", kCounter, "", "Times that experts of rank 0 changed places"},
    {"shoal_trace_spans_total", kCounter, "result", "Spans for --otlp-endpoint: exported, dropped"},

    {"process_resident_memory_bytes", kGauge, "", "Of the front end"},
    {"process_virtual_memory_bytes", kGauge, "", "Of the front end"},
    {"process_open_fds", kGauge, "", "Of the front end"},
    {"process_max_fds", kGauge, "", "Of the front end"},
    {"process_threads", kGauge, "", "Of the front end"},
    {"process_cpu_seconds_total", kCounter, "", "Of the front end, user and system"},
    {"process_start_time_seconds", kGauge, "", "Of the front end, since 1970"},
};

}  // namespace

std::span<const MetricInfo> metric_list() { return kMetrics; }

const MetricInfo& metric_info(std::string_view name) {
  for (const MetricInfo& metric : kMetrics) {
    if (metric.name == name) return metric;
  }
  SHOAL_CHECK(false, "no metric {}", name);
}

}  // namespace shoal
