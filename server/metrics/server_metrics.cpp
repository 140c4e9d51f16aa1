#include "server/metrics/server_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "kernels/base/error.h"
#include "server/metrics/metric_list.h"
#include "server/metrics/process_stats.h"

namespace shoal {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;
using Buckets = Histogram::BucketBoundaries;
using Seconds = std::chrono::duration<double>;

// The lists of vLLM, so that its dashboards' quantiles mean the same.
const Buckets kFirstTokenBuckets = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                    1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const Buckets kTokenBuckets = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                               .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
const Buckets kRequestBuckets = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const Buckets kSampleBuckets = {1, 2, 5, 10, 20};

// 1, 2, 5, 10, 20, 50, .. up to `most`.
Buckets one_two_five(int64_t most) {
  Buckets buckets;
  for (int64_t decade = 1;; decade *= 10) {
    for (const int64_t factor : {1, 2, 5}) {
      if (factor * decade > std::max<int64_t>(most, 1)) return buckets;
      buckets.push_back(static_cast<double>(factor * decade));
    }
  }
}

template <size_t N>
Buckets buckets_of(const std::array<double, N>& bounds) {
  return {bounds.begin(), bounds.end()};
}

const char* engine_state_name(EngineState state, bool draining) {
  if (draining) return "draining";
  switch (state) {
    case EngineState::kStarting:
    case EngineState::kLoading: return "loading";
    case EngineState::kReady: return "ready";
    case EngineState::kRestarting: return "restarting";
    case EngineState::kFailed: return "failed";
    case EngineState::kStopped: return "draining";
  }
  SHOAL_CHECK(false, "state {}", static_cast<int>(state));
}

}  // namespace

const char* call_code_name(CallCode code) {
  switch (code) {
    case CallCode::kOk: return "OK";
    case CallCode::kCancelled: return "CANCELLED";
    case CallCode::kInvalidArgument: return "INVALID_ARGUMENT";
    case CallCode::kDeadlineExceeded: return "DEADLINE_EXCEEDED";
    case CallCode::kNotFound: return "NOT_FOUND";
    case CallCode::kResourceExhausted: return "RESOURCE_EXHAUSTED";
    case CallCode::kInternal: return "INTERNAL";
    case CallCode::kUnavailable: return "UNAVAILABLE";
    case CallCode::kUnauthenticated: return "UNAUTHENTICATED";
  }
  SHOAL_CHECK(false, "code {}", static_cast<int>(code));
}

class ServerMetrics::Impl {
 public:
  explicit Impl(const MetricsOptions& options)
      : options_(options),
        first_token_(histogram("vllm:time_to_first_token_seconds", kFirstTokenBuckets)),
        token_(histogram("vllm:inter_token_latency_seconds", kTokenBuckets)),
        call_token_(histogram("vllm:request_time_per_output_token_seconds", kTokenBuckets)),
        e2e_(histogram("vllm:e2e_request_latency_seconds", kRequestBuckets)),
        queue_(histogram("vllm:request_queue_time_seconds", kRequestBuckets)),
        inference_(histogram("vllm:request_inference_time_seconds", kRequestBuckets)),
        prefill_(histogram("vllm:request_prefill_time_seconds", kRequestBuckets)),
        decode_(histogram("vllm:request_decode_time_seconds", kRequestBuckets)),
        prompt_tokens_(histogram("vllm:request_prompt_tokens", one_two_five(options.context_tokens))),
        generated_(histogram("vllm:request_generation_tokens", one_two_five(options.context_tokens))),
        n_(histogram("vllm:request_params_n", kSampleBuckets)),
        max_tokens_(histogram("vllm:request_params_max_tokens", one_two_five(options.context_tokens))),
        step_tokens_(histogram("vllm:iteration_tokens_total", buckets_of(kStepTokenBounds))),
        step_seconds_(histogram("shoal_step_seconds", buckets_of(kStepSecondsBounds))) {
    gauge("shoal_build_info", {{"version", options.version}}).Set(1);
    // Series that a rate is taken of are there from the start.
    for (const char* reason : {"stop", "length", "abort"}) {
      counter("vllm:request_success_total", {{"finished_reason", reason}});
    }
  }

  void on_tokens(double seconds) { token_.Observe(seconds); }

  void on_end(const CallRecord& call) {
    if (!call.context.client->name.empty()) count_client(call);
    if (!call.submitted) {
      counter("shoal_calls_refused_total", {{"method", call.method},
                                            {"code", call_code_name(call.status.code)},
                                            {"reason", refusal_name(call.status)}})
          .Increment();
      return;
    }
    counter("shoal_calls_ended_total",
            {{"method", call.method}, {"code", call_code_name(call.status.code)}})
        .Increment();
    for (const char* reason : call.finish_reasons) {
      counter("vllm:request_success_total", {{"finished_reason", reason}}).Increment();
    }
    if (const auto open = call.n - static_cast<int32_t>(call.finish_reasons.size()); open > 0) {
      counter("vllm:request_success_total", {{"finished_reason", "abort"}}).Increment(open);
    }
    prompt_tokens_.Observe(call.prompt_tokens);
    generated_.Observe(call.completion_tokens);
    n_.Observe(call.n);
    max_tokens_.Observe(call.max_tokens);
    e2e_.Observe(Seconds(*call.ended - call.arrived).count());
    if (!call.first_token) return;
    const double decode = Seconds(*call.last_token - *call.first_token).count();
    const double until_first = Seconds(*call.first_token - *call.submitted).count();
    const double prefill = std::max(until_first - call.queue_seconds, 0.0);
    first_token_.Observe(Seconds(*call.first_token - call.arrived).count());
    queue_.Observe(call.queue_seconds);
    prefill_.Observe(prefill);
    decode_.Observe(decode);
    inference_.Observe(prefill + decode);
    const double after_first = static_cast<double>(call.completion_tokens) / call.n - 1;
    if (after_first > 0) call_token_.Observe(decode / after_first);
  }

  std::string text(const Now& now) {
    const std::lock_guard lock(mutex_);
    read(now);
    read_ranks(now.engine);
    read_experts(now.engine);
    read_process();
    std::vector<prometheus::MetricFamily> families = registry_.Collect();
    // One histogram under two names: a token is observed once.
    const auto it = std::find_if(families.begin(), families.end(), [](const auto& family) {
      return family.name == "vllm:inter_token_latency_seconds";
    });
    SHOAL_CHECK(it != families.end());
    prometheus::MetricFamily copy = *it;
    const MetricInfo& info = metric_info("vllm:time_per_output_token_seconds");
    copy.name = info.name;
    copy.help = info.help;
    families.push_back(std::move(copy));
    return prometheus::TextSerializer().Serialize(families);
  }

 private:
  Labels constant_labels(std::string_view name) const {
    Labels labels;
    if (name.starts_with("process_")) return labels;
    labels["model_name"] = options_.model_name;
    if (name.starts_with("vllm:")) labels["engine"] = "0";
    return labels;
  }

  // The family of that name, made when it is first asked for.
  template <typename Metric, typename Build>
  prometheus::Family<Metric>& family(std::map<std::string, prometheus::Family<Metric>*>& families,
                                     const char* name, MetricKind kind, const Build& build) {
    const std::lock_guard lock(families_mutex_);
    prometheus::Family<Metric>*& family = families[name];
    if (family == nullptr) {
      const MetricInfo& info = metric_info(name);
      SHOAL_CHECK(info.kind == kind, "{} is of another kind", name);
      family = &build().Name(name).Help(info.help).Labels(constant_labels(name)).Register(registry_);
    }
    return *family;
  }
  Counter& counter(const char* name, const Labels& labels = {}) {
    return family(counters_, name, MetricKind::kCounter, prometheus::BuildCounter).Add(labels);
  }
  Gauge& gauge(const char* name, const Labels& labels = {}) {
    return family(gauges_, name, MetricKind::kGauge, prometheus::BuildGauge).Add(labels);
  }
  Histogram& histogram(const char* name, const Buckets& buckets) {
    return family(histograms_, name, MetricKind::kHistogram, prometheus::BuildHistogram)
        .Add({}, buckets);
  }

  // A counter that somebody else counts; one that falls has begun anew.
  void follow(Counter& counter, double value) {
    double& last = last_[&counter];
    counter.Increment(value >= last ? value - last : value);
    last = value;
  }
  void follow(const char* name, double value, const Labels& labels = {}) {
    follow(counter(name, labels), value);
  }
  template <size_t N>
  void follow(Histogram& histogram, BucketCounts<N>& last, const BucketCounts<N>& now) {
    if (now.sum < last.sum) last = {};
    std::vector<double> more;
    for (size_t i = 0; i <= N; ++i) more.push_back(static_cast<double>(now.counts[i] - last.counts[i]));
    histogram.ObserveMultiple(more, now.sum - last.sum);
    last = now;
  }

  void count_client(const CallRecord& call) {
    const std::string& client = call.context.client->name;
    counter("shoal_client_calls_total",
            {{"client", client}, {"code", call_code_name(call.status.code)}})
        .Increment();
    const auto tokens = [&](const char* kind, int32_t count) {
      counter("shoal_client_tokens_total", {{"client", client}, {"kind", kind}}).Increment(count);
    };
    tokens("prompt", call.prompt_tokens);
    tokens("cached", call.cached_tokens);
    tokens("generated", call.completion_tokens);
  }

  void read(const Now& now) {
    const EngineStatus& e = now.engine;
    const double used = e.pages_total > 0 ? static_cast<double>(e.pages_used) / e.pages_total : 0;
    const int64_t pages = e.pages_total > 0 ? e.pages_total : e.kv_tokens / options_.page_size;
    gauge("vllm:num_requests_running").Set(e.running);
    gauge("vllm:num_requests_waiting").Set(e.waiting);
    gauge("vllm:kv_cache_usage_perc").Set(used);
    gauge("vllm:gpu_cache_usage_perc").Set(used);
    follow("vllm:prefix_cache_queries_total", e.prefix_queries);
    follow("vllm:prefix_cache_hits_total", e.prefix_hits);
    follow("vllm:num_preemptions_total", e.preemptions);
    follow("vllm:prompt_tokens_total", e.prompt_tokens);
    follow("vllm:generation_tokens_total", e.generated_tokens);
    if (e.kv_tokens > 0) {
      gauge("vllm:cache_config_info", {{"block_size", std::to_string(options_.page_size)},
                                       {"cache_dtype", options_.cache_dtype},
                                       {"enable_prefix_caching", options_.prefix_caching ? "True" : "False"},
                                       {"num_gpu_blocks", std::to_string(pages)}})
          .Set(1);
    }
    const std::string_view state = engine_state_name(e.state, now.draining);
    for (const char* name : {"loading", "ready", "restarting", "failed", "draining"}) {
      gauge("shoal_state", {{"state", name}}).Set(state == name ? 1 : 0);
    }
    gauge("shoal_load_ratio")
        .Set(e.bytes_total > 0 ? static_cast<double>(e.bytes_read) / static_cast<double>(e.bytes_total) : 0);
    gauge("shoal_load_seconds").Set(e.load_seconds);
    const CallCounts& c = now.calls;
    follow("shoal_calls_accepted_total", static_cast<double>(c.accepted));
    gauge("shoal_calls_open").Set(static_cast<double>(c.open));
    gauge("shoal_sequences_alive").Set(static_cast<double>(c.sequences));
    gauge("shoal_stream_pending_bytes").Set(static_cast<double>(c.pending_bytes));
    gauge("shoal_kv_pages", {{"state", "used"}}).Set(e.pages_used);
    gauge("shoal_kv_pages", {{"state", "total"}}).Set(pages);
    const auto moves = [&](const char* kind, int64_t count) {
      follow("shoal_kv_page_moves_total", count, {{"kind", kind}});
    };
    moves("swapped_out", e.tiers.swapped_out);
    moves("swapped_in", e.tiers.swapped_in);
    moves("spilled", e.tiers.spilled);
    moves("restored", e.tiers.restored);
    moves("saved", e.tiers.saved);
    moves("loaded", e.tiers.loaded);
    follow("shoal_engine_restarts_total", e.restarts);
    follow("shoal_engine_steps_total", static_cast<double>(e.steps));
    follow(step_tokens_, last_step_tokens_, e.step_tokens);
    follow(step_seconds_, last_step_seconds_, e.step_seconds);
    follow("shoal_trace_spans_total", static_cast<double>(now.spans_exported), {{"result", "exported"}});
    follow("shoal_trace_spans_total", static_cast<double>(now.spans_dropped), {{"result", "dropped"}});
  }

  void read_ranks(const EngineStatus& e) {
    for (size_t r = 0; r < e.rank_stats.size(); ++r) {
      const RankStats& stats = e.rank_stats[r];
      const std::string rank = std::to_string(r);
      follow("shoal_rank_steps_total", static_cast<double>(stats.steps), {{"rank", rank}});
      follow("shoal_rank_step_seconds_total", stats.step_seconds, {{"rank", rank}});
      follow("shoal_rank_collective_seconds_total", stats.collective_seconds, {{"rank", rank}});
      for (int verb = 0; verb < kNumTraffic; ++verb) {
        follow("shoal_rank_sent_bytes_total", static_cast<double>(stats.bytes_sent[verb]),
               {{"rank", rank}, {"verb", std::string(kTrafficNames[verb])}});
      }
      gauge("shoal_rank_resident_bytes", {{"rank", rank}}).Set(static_cast<double>(stats.resident_bytes));
      follow("shoal_rank_expert_rows_total", static_cast<double>(stats.expert_rows), {{"rank", rank}});
    }
    for (size_t r = 0; r < e.memory.size(); ++r) {
      for (const MemoryTaken& memory : e.memory[r]) {
        const Labels labels{{"rank", std::to_string(r)}, {"use", memory.use}};
        gauge("shoal_memory_planned_bytes", labels).Set(static_cast<double>(memory.planned));
        gauge("shoal_memory_taken_bytes", labels).Set(static_cast<double>(memory.taken));
      }
    }
  }

  void read_experts(const EngineStatus& e) {
    if (e.experts.mean_imbalance > 0) {
      gauge("shoal_expert_imbalance", {{"over", "layers"}}).Set(e.experts.mean_imbalance);
      gauge("shoal_expert_imbalance", {{"over", "worst_layer"}}).Set(e.experts.worst_imbalance);
      gauge("shoal_expert_imbalance", {{"over", "ranks"}}).Set(e.experts.rank_imbalance);
      gauge("shoal_experts_idle").Set(static_cast<double>(e.experts.idle_experts));
    }
    const OffloadStats& o = e.offload;
    if (o.experts_on_host + o.experts_on_disk == 0) return;
    gauge("shoal_experts", {{"home", "device"}}).Set(o.experts_on_device);
    gauge("shoal_experts", {{"home", "host"}}).Set(o.experts_on_host);
    gauge("shoal_experts", {{"home", "disk"}}).Set(o.experts_on_disk);
    const auto bytes = [&](const char* kind, uint64_t count) {
      follow("shoal_expert_bytes_total", static_cast<double>(count), {{"kind", kind}});
    };
    bytes("streamed", o.bytes_streamed);
    bytes("read_by_cpu", o.bytes_read_by_cpu);
    bytes("read_from_disk", o.bytes_from_disk);
    follow("shoal_expert_moves_total", static_cast<double>(o.moves));
  }

  void read_process() {
    const ProcessStats p = process_stats();
    gauge("process_resident_memory_bytes").Set(static_cast<double>(p.resident_bytes));
    gauge("process_virtual_memory_bytes").Set(static_cast<double>(p.virtual_bytes));
    gauge("process_open_fds").Set(static_cast<double>(p.open_fds));
    gauge("process_max_fds").Set(static_cast<double>(p.max_fds));
    gauge("process_threads").Set(static_cast<double>(p.threads));
    follow("process_cpu_seconds_total", p.cpu_seconds);
    gauge("process_start_time_seconds").Set(p.start_seconds);
  }

  const MetricsOptions options_;
  prometheus::Registry registry_;
  std::mutex families_mutex_;
  std::map<std::string, prometheus::Family<Counter>*> counters_;      // guarded by families_mutex_
  std::map<std::string, prometheus::Family<Gauge>*> gauges_;          // and this
  std::map<std::string, prometheus::Family<Histogram>*> histograms_;  // and this
  Histogram &first_token_, &token_, &call_token_, &e2e_, &queue_, &inference_, &prefill_, &decode_,
      &prompt_tokens_, &generated_, &n_, &max_tokens_, &step_tokens_, &step_seconds_;

  std::mutex mutex_;  // of what follows
  std::unordered_map<const Counter*, double> last_;
  BucketCounts<kStepTokenBounds.size()> last_step_tokens_;
  BucketCounts<kStepSecondsBounds.size()> last_step_seconds_;
};

ServerMetrics::ServerMetrics(const MetricsOptions& options) : impl_(std::make_unique<Impl>(options)) {}
ServerMetrics::~ServerMetrics() = default;
void ServerMetrics::on_tokens(const CallRecord&, int32_t, double seconds) { impl_->on_tokens(seconds); }
void ServerMetrics::on_end(const CallRecord& call) { impl_->on_end(call); }
std::string ServerMetrics::text(const Now& now) { return impl_->text(now); }

}  // namespace shoal
