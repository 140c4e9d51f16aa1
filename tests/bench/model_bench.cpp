#include "tests/bench/model_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "runtime/engine/model_runner.h"
#include "runtime/model/decoder.h"
#include "tests/bench/synthetic_weights.h"

namespace shoal::bench {
namespace {

constexpr int32_t kPageSize = 16;  // as the server has it by default

struct Sizes {
  std::vector<int64_t> batches, prefills;
  int64_t context, chunk, max_len;
};
// Contexts of 1024 tokens are written by prefill in steps of 512, the server's default.
const Sizes kReal{{1, 8, 32}, {512, 2048}, 1024, 512, 4096};
const Sizes kTiny{{1, 2, 3}, {9, 40}, 20, 16, 64};

// One model on one rank, ready to run.
class ModelUnderTest {
 public:
  ModelUnderTest(const ModelCase& which, RankRuntime& rank, const Sizes& sizes)
      : which_(which), sizes_(sizes), weights_(rank.device(), which.weights) {
    ExecContext ctx = rank.exec(DType::kBF16);
    model_ =
        make_model(which.config, which.layout, {DType::kBF16, sizes.max_len, false}, weights_, ctx);
    pages_ = static_cast<int32_t>((sizes.max_len + kPageSize - 1) / kPageSize);
    const auto num_pages = static_cast<int32_t>(pages_ * sizes.batches.back());
    runner_ = std::make_unique<ModelRunner>(rank, *model_, which.layout, DType::kBF16, DType::kBF16,
                                            kPageSize, num_pages);
    kv_bytes_per_token_ = static_cast<double>(runner_->kv_cache_bytes()) /
                          ((static_cast<double>(num_pages) + 1) * kPageSize);
  }

  bool record_graphs() { return runner_->record_graphs(sizes_.batches.back(), sizes_.max_len, {}); }
  void run(const StepPlan& plan) { runner_->run(plan); }

  SequenceSlice slice(int64_t sequence, int64_t position, int64_t tokens, bool absorbed) {
    SequenceSlice s;
    s.request = static_cast<RequestId>(sequence);
    s.first_position = static_cast<int32_t>(position);
    for (int64_t i = 0; i < tokens; ++i) {
      s.tokens.push_back(static_cast<int32_t>(random_() % which_.config.vocab_size));
    }
    for (int32_t i = 0; i < pages_; ++i)
      s.pages.push_back(static_cast<int32_t>(sequence) * pages_ + i);
    s.absorbed = absorbed;
    s.sample = true;
    return s;
  }
  StepPlan prefill(int64_t sequence, int64_t position, int64_t tokens) {
    StepPlan plan;
    plan.slices = {slice(sequence, position, tokens, /*absorbed=*/false)};
    return plan;
  }
  StepPlan decode(int64_t batch) {
    StepPlan plan;
    for (int64_t s = 0; s < batch; ++s) {
      plan.slices.push_back(slice(s, sizes_.context, 1, /*absorbed=*/true));
    }
    return plan;
  }

  // A step reads every weight once, of the routed experts those that some token chose (a balanced
  // router), and the context of every sequence.
  double decode_bytes(int64_t batch) const {
    return static_cast<double>(weights_.linears().bytes + weights_.absorbed().bytes +
                               weights_.head().bytes) +
           static_cast<double>(weights_.experts().bytes) * experts_touched(batch) +
           static_cast<double>(batch * (sizes_.context + 1)) * kv_bytes_per_token_;
  }
  double prefill_bytes(int64_t tokens) const {
    return static_cast<double>(weights_.linears().bytes + weights_.expanded().bytes +
                               weights_.head().bytes) +
           static_cast<double>(weights_.experts().bytes) * experts_touched(tokens) +
           static_cast<double>(tokens) * kv_bytes_per_token_;
  }
  double prefill_flops(int64_t tokens) const {
    const ModelConfig& c = which_.config;
    const auto t = static_cast<double>(tokens);
    const double per_token =
        static_cast<double>(weights_.linears().elements + weights_.expanded().elements) +
        static_cast<double>(weights_.experts().elements) * experts_per_token();
    const auto heads = static_cast<double>(attention_heads_of(c, which_.layout).size());
    const auto width =
        static_cast<double>(c.is_mla() ? c.qk_head_dim() + c.v_head_dim : 2 * c.head_dim);
    const double attention =
        2 * t * (t + 1) / 2 * heads * width * static_cast<double>(c.num_hidden_layers);
    return 2 * t * per_token + 2 * static_cast<double>(weights_.head().elements) + attention;
  }

 private:
  double experts_per_token() const {  // the share of all experts that one token chooses
    const ModelConfig& c = which_.config;
    return c.n_routed_experts == 0
               ? 0
               : static_cast<double>(c.router.top_k) / static_cast<double>(c.n_routed_experts);
  }
  double experts_touched(int64_t tokens) const {
    return 1 - std::pow(1 - experts_per_token(), static_cast<double>(tokens));
  }

  const ModelCase& which_;
  const Sizes& sizes_;
  SyntheticWeights weights_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<ModelRunner> runner_;
  int32_t pages_ = 0;  // of a sequence
  double kv_bytes_per_token_ = 0;
  std::mt19937 random_{1};
};

class ModelBench {
 public:
  ModelBench(const ModelBenchOptions& options, ModelReport& report)
      : options_(options), report_(report), sizes_(options.meter.tiny ? kTiny : kReal) {}

  void run(const ModelCase& which) {
    BackendOptions backend;
    backend.device = options_.device;
    backend.num_threads = options_.meter.threads;
    RankRuntime rank(backend);
    ModelUnderTest model(which, rank, sizes_);
    for (const int64_t tokens : sizes_.prefills) {
      add(which, fmt::format("prefill, {} tokens", tokens), tokens,
          seconds(model, model.prefill(0, 0, tokens)),
          std::max(model.prefill_bytes(tokens) / report_.bandwidth,
                   model.prefill_flops(tokens) / report_.math_rate));
    }
    // Decode reads caches of numbers: what no step wrote may be NaN, and NaN would choose other
    // experts.
    for (int64_t s = 0; s < sizes_.batches.back(); ++s) {
      for (int64_t at = 0; at < sizes_.context; at += sizes_.chunk) {
        model.run(model.prefill(s, at, std::min(sizes_.chunk, sizes_.context - at)));
      }
    }
    decode(which, model, "");
    if (model.record_graphs()) decode(which, model, ", graphs");
  }

 private:
  void decode(const ModelCase& which, ModelUnderTest& model, const std::string& how) {
    for (const int64_t batch : sizes_.batches) {
      add(which, fmt::format("decode, batch {}{}", batch, how), batch,
          seconds(model, model.decode(batch)), model.decode_bytes(batch) / report_.bandwidth);
    }
  }

  // The median step on the host's clock: a step ends when its logits are on the host.
  double seconds(ModelUnderTest& model, const StepPlan& plan) {
    // Three medians' worth: single steps are short and the host's clock is not alone.
    const int steps = options_.meter.tiny ? 1 : 3 * options_.meter.repeats;
    for (int i = 0; i < 2; ++i) model.run(plan);
    std::vector<double> times;
    for (int i = 0; i < steps; ++i) {
      const double start = now(options_.meter.clock);
      model.run(plan);
      times.push_back(now(options_.meter.clock) - start);
    }
    return median(times);
  }

  void add(const ModelCase& which, const std::string& step, int64_t tokens, double seconds,
           double limit) {
    const ModelRow row{which.name, std::string(dtype_name(which.weights)), step, tokens, seconds,
                       limit};
    SHOAL_CHECK(std::isfinite(seconds) && seconds > 0 && std::isfinite(limit) && limit > 0,
                "{} {}: {} s, limit {} s", row.model, step, seconds, limit);
    const auto count = static_cast<double>(tokens);
    fmt::print("{:<26} {:<12} {:<26} {:>10.3f} {:>11.1f} {:>11.1f} {:>7.0f} %\n", row.model,
               row.weights, step, seconds * 1e3, count / seconds, count / limit,
               100 * limit / seconds);
    std::fflush(stdout);
    report_.rows.push_back(row);
  }

  const ModelBenchOptions& options_;
  ModelReport& report_;
  const Sizes& sizes_;
};

}  // namespace

ModelReport run_models(const ModelBenchOptions& options) {
  ModelReport report;
  {
    const std::unique_ptr<Meter> meter = make_meter(options.device, options.meter);
    report.device = meter->name();
    report.bandwidth = meter->bandwidth();
    report.math_rate = meter->math_rate();
  }
  const Sizes& sizes = options.meter.tiny ? kTiny : kReal;
  fmt::print(
      "{}\nlimits, measured: memory {:.1f} GB/s, arithmetic {:.2f} TFLOP/s\n"
      "made-up weights; decode after contexts of {} tokens; the limit is what bytes and FLOPs "
      "allow\n\n",
      report.device, report.bandwidth / 1e9, report.math_rate / 1e12, sizes.context);
  fmt::print("{:<26} {:<12} {:<26} {:>10} {:>11} {:>11} {:>9}\n", "model", "weights", "step", "ms",
             "tokens/s", "limit", "of limit");
  ModelBench bench(options, report);
  for (const ModelCase& which : model_cases(options.meter.tiny)) {
    const std::string label = fmt::format("{} {}", which.name, dtype_name(which.weights));
    if (label.find(options.only) == std::string::npos) continue;
    try {
      bench.run(which);
    } catch (const InvalidInput& error) {
      report.skipped.push_back(fmt::format("{}: {}", label, error.what()));
      fmt::print("SKIPPED: {}\n", report.skipped.back());
    }
  }
  return report;
}

nlohmann::json ModelReport::json() const {
  nlohmann::json list = nlohmann::json::array();
  for (const ModelRow& row : rows) {
    list.push_back({{"model", row.model},
                    {"weights", row.weights},
                    {"step", row.step},
                    {"tokens", row.tokens},
                    {"seconds", row.seconds},
                    {"limit_seconds", row.limit_seconds}});
  }
  return {{"device", device},
          {"bytes_per_second", bandwidth},
          {"flops_per_second", math_rate},
          {"skipped", skipped},
          {"rows", list}};
}

}  // namespace shoal::bench
