#include "runtime/engine/step_runner.h"

#include "kernels/base/error.h"

namespace shoal {

std::vector<SampleResult> StepRunner::run_and_sample(const StepPlan& plan,
                                                     std::span<const SampleInput> inputs) {
  return sample_rows(run(plan), inputs);
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
    results.push_back(sample(logits.subspan(i * vocab, vocab), *in.params, in.tokens,
                             in.prompt_len, in.end_token_ids));
  }
  return results;
}

}  // namespace shoal
