#include "runtime/memory/advice.h"

#include <algorithm>

#include "runtime/memory/known_models.h"

namespace shoal {
namespace {

constexpr int64_t kRateContext = 1024;

class Adviser {
 public:
  Adviser(Planner& planner, const AdviceRequest& request) : planner_(planner), request_(request) {}

  std::vector<Advice> all() {
    shorter_context();
    smaller_steps();
    kv_format();
    quantised();
    more_gpus();
    offloaded();
    quantised_on_more_gpus();
    distilled();
    return std::move(advice_);
  }

 private:
  PlanBudget budget_for(const PlanOptions& options) const {
    PlanBudget budget = request_.budget;
    if (planner_.device().on_gpu && request_.options.ranks == 1 && options.ranks > 1) {
      budget.driver = gpu_budget(planner_.device(), request_.utilization, options.ranks).driver;
    }
    return budget;
  }

  // Adds the change if it makes the plan fit.
  bool offer(const std::string& what, std::vector<std::string> flags, const PlanOptions& options) {
    MemoryPlan plan;
    const PlanBudget budget = budget_for(options);
    try {
      check_layout(planner_.config(), options.ranks, options.dp_attention);
      if (planner_.too_heavy(options, budget)) return false;
      plan = planner_.plan(options, budget);
    } catch (const InvalidInput&) {  // more ranks than heads
      return false;
    }
    if (!plan.fits) return false;
    if (request_.budget.host > 0 && plan.host_bytes() > request_.budget.host) return false;
    Advice advice{what, std::move(flags), options, std::max(options.ranks, request_.gpus), "",
                  std::move(plan), 0};
    if (planner_.device().gigabytes_per_s > 0) {
      advice.decode_tokens_per_s = decode_rate(planner_, advice.plan, 1, context_of(advice.plan)).tokens_per_s;
    }
    advice_.push_back(std::move(advice));
    return true;
  }
  static int64_t context_of(const MemoryPlan& plan) { return std::min(plan.max_model_len, kRateContext); }

  void shorter_context() {
    if (request_.options.max_model_len == 0) return;  // it already gives way
    PlanOptions o = request_.options;
    const int64_t length = longest_context(planner_, o, request_.budget);
    if (length == 0) return;
    o.max_model_len = length;
    offer(fmt::format("contexts of {} tokens", length), {fmt::format("--max-model-len {}", length)}, o);
  }

  // Activations and logits grow with the largest step.
  void smaller_steps() {
    PlanOptions o = request_.options;
    for (int64_t seqs = o.max_num_seqs / 2; seqs >= 1; seqs /= 2) {
      o.max_num_seqs = seqs;
      if (offer(fmt::format("{} sequence{} at a time", seqs, seqs == 1 ? "" : "s"),
                {fmt::format("--max-num-seqs {}", seqs)}, o)) {
        return;
      }
    }
    o = request_.options;
    constexpr int64_t kLeast = 64;
    for (int64_t tokens = o.max_num_batched_tokens / 2; tokens >= kLeast; tokens /= 2) {
      o.max_num_batched_tokens = tokens;
      if (offer(fmt::format("{} tokens a step", tokens),
                {fmt::format("--max-num-batched-tokens {}", tokens)}, o)) {
        return;
      }
    }
  }

  void kv_format() {
    PlanOptions o = request_.options;
    if (o.kv_cache_dtype == "fp8" || o.kv_cache_dtype == "fp8_e4m3" || o.kv_cache_dtype == "int8") return;
    o.kv_cache_dtype = "fp8";
    offer("the KV cache in fp8", {"--kv-cache-dtype fp8"}, o);
  }

  // The schemes that shrink what is planned, the finest first. INT8 takes as much as FP8 does, and is for
  // devices without it: one of the two is enough.
  std::vector<std::string> schemes() const {
    if (!request_.may_quantise) return {};
    std::vector<std::string> result;
    uint64_t bytes = whole_bytes(request_.options.quantization);
    try {
      for (const char* quantization : {"fp8", "int8", "int4"}) {
        const uint64_t smaller = whole_bytes(quantization);
        if (static_cast<double>(smaller) > 0.98 * static_cast<double>(bytes)) continue;
        result.push_back(quantization);
        bytes = smaller;
      }
    } catch (const InvalidInput&) {  // it holds integers already
    }
    return result;
  }
  uint64_t whole_bytes(const std::string& quantization) const {
    return planner_.weights(quantization, request_.options.dtype).total_bytes();
  }

  void quantised() {
    for (const std::string& quantization : schemes()) {
      PlanOptions o = request_.options;
      o.quantization = quantization;
      if (offer("weights in " + quantization, {"--quantization " + quantization}, o)) return;
    }
  }

  // Any number up to a node's eight, then whole nodes.
  std::vector<int> gpu_counts(int most) const {
    std::vector<int> counts;
    most = static_cast<int>(std::min<int64_t>(planner_.config().num_attention_heads, most));
    for (int n = request_.options.ranks + 1; n <= most; n += n < 8 ? 1 : 8 - n % 8) counts.push_back(n);
    return counts;
  }

  std::string gpus_text(int n) const { return fmt::format("{}x{}", n, planner_.device().name); }

  void more_gpus() {
    if (!planner_.device().on_gpu) return;
    // A node full of them, or twice as many: more is not a small change.
    for (const int n : gpu_counts(std::max(8, 2 * request_.options.ranks))) {
      PlanOptions o = request_.options;
      o.ranks = n;
      if (offer(gpus_text(n), {fmt::format("--tensor-parallel-size {}", n)}, o)) return;
    }
  }

  void offloaded() {
    if (!request_.may_offload || planner_.config().n_routed_experts == 0 ||
        request_.options.experts != ExpertHome::kDevice) {
      return;
    }
    PlanOptions o = request_.options;
    const auto offer_offload = [&](ExpertHome home) {
      o.experts = home;
      const bool quantised = o.quantization != request_.options.quantization;
      std::vector<std::string> flags;
      if (quantised) flags.push_back("--quantization " + o.quantization);
      flags.push_back("--expert-offload auto");
      return offer(fmt::format("{}routed experts in host memory{}",
                               quantised ? fmt::format("weights in {}, ", o.quantization) : "",
                               home == ExpertHome::kDisk ? " and on disk" : ""),
                   std::move(flags), o);
    };
    std::vector<std::string> tries{o.quantization};
    for (const std::string& quantization : schemes()) tries.push_back(quantization);
    for (const std::string& quantization : tries) {
      o.quantization = quantization;
      if (offer_offload(ExpertHome::kHost)) return;
    }
    o.quantization = tries.back();
    offer_offload(ExpertHome::kDisk);
  }

  void quantised_on_more_gpus() {
    const bool easier = std::any_of(advice_.begin(), advice_.end(), [](const Advice& a) {
      return a.options.experts == ExpertHome::kDevice;
    });
    if (!planner_.device().on_gpu || easier) return;
    constexpr int kMost = 64;
    for (const std::string& quantization : schemes()) {
      for (const int n : gpu_counts(kMost)) {
        PlanOptions o = request_.options;
        o.ranks = n;
        o.quantization = quantization;
        if (offer(fmt::format("weights in {} on {}", quantization, gpus_text(n)),
                  {"--quantization " + quantization, fmt::format("--tensor-parallel-size {}", n)}, o)) {
          return;
        }
      }
    }
  }

  // The largest model distilled from R1 that fits, quantised as little as it takes.
  void distilled() {
    if (!request_.may_change_model || planner_.config().n_routed_experts == 0) return;
    const auto models = known_models();
    for (auto model = models.rbegin(); model != models.rend(); ++model) {
      if (!model->is_distill()) continue;
      Planner planner(parse_model_config(model->config, model->name), {}, planner_.device());
      for (const std::string quantization :
           {"none", "fp8", "int8", "int4"}) {
        PlanOptions o = request_.options;
        o.quantization = quantization;
        o.ranks = static_cast<int>(std::min<int64_t>(request_.gpus, planner.config().num_attention_heads));
        o.dp_attention = false;
        o.experts = ExpertHome::kDevice;
        o.max_model_len = std::min(o.max_model_len, planner.config().max_position_embeddings);
        const PlanBudget budget = budget_for(o);
        if (planner.too_heavy(o, budget)) continue;
        MemoryPlan plan = planner.plan(o, budget);
        if (!plan.fits) continue;
        std::vector<std::string> flags{std::string("--model ") + model->name};
        if (o.ranks != request_.options.ranks) flags.push_back(fmt::format("--tensor-parallel-size {}", o.ranks));
        if (quantization != "none") flags.push_back("--quantization " + quantization);
        Advice advice{fmt::format("the distilled model {}{}", short_name(*model),
                                  quantization == "none" ? "" : " in " + quantization),
                      std::move(flags), o, request_.gpus, model->name, std::move(plan), 0};
        if (planner.device().gigabytes_per_s > 0) {
          advice.decode_tokens_per_s = decode_rate(planner, advice.plan, 1, context_of(advice.plan)).tokens_per_s;
        }
        advice_.push_back(std::move(advice));
        return;
      }
    }
  }

  Planner& planner_;
  const AdviceRequest& request_;
  std::vector<Advice> advice_;
};

}  // namespace

std::vector<Advice> advise(Planner& planner, const AdviceRequest& request) {
  return Adviser(planner, request).all();
}

int64_t longest_context(Planner& planner, const PlanOptions& options, const PlanBudget& budget) {
  const int64_t page = options.page_size;
  PlanOptions o = options;
  if (planner.too_heavy(options, budget)) return 0;
  const auto fits = [&](int64_t pages) {
    o.max_model_len = pages * page;
    return planner.plan(o, budget).fits;
  };
  int64_t low = 0, high = planner.wanted_len(options) / page;  // fits(low), not fits(high + 1)
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low * page;
}

std::string join_flags(const std::vector<std::string>& flags) {
  std::string text;
  for (const std::string& flag : flags) text += (text.empty() ? "" : " ") + flag;
  return text;
}

}  // namespace shoal
