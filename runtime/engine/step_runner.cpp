#include "runtime/engine/step_runner.h"

#include <utility>

#include "kernels/base/error.h"

namespace shoal {

void StepRunner::begin(const StepPlan& plan) { logits_ = run(plan); }

void StepRunner::sample(std::span<const SampleInput> inputs) {
  results_ = sample_rows(logits_, inputs);
}

std::vector<SampleResult> StepRunner::collect() { return std::exchange(results_, {}); }

void StepRunner::move_pages(const StepPlan& plan) {
  SHOAL_CHECK(plan.copies.empty() && plan.files.empty(),
              "a runner without tiers got a plan with pages");
}

std::vector<SampleResult> sample_rows(std::span<const float> logits,
                                      std::span<const SampleInput> inputs) {
  std::vector<SampleResult> results;
  if (inputs.empty()) return results;
  const size_t vocab = logits.size() / inputs.size();
  SHOAL_CHECK(vocab > 0 && logits.size() == vocab * inputs.size(), "{} logits for {} rows",
              logits.size(), inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const SampleInput& in = inputs[i];
    SampleResult& result = results.emplace_back();
    if (in.params == nullptr) continue;
    result = sample(logits.subspan(i * vocab, vocab), *in.params, in.tokens, in.prompt_len,
                    in.end_token_ids);
  }
  return results;
}

}  // namespace shoal
