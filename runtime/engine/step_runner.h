// StepRunner: what the engine needs of a rank's model: one step of a plan. Implemented by ModelRunner,
// and by models of a few lines in the tests of the engine.
#pragma once

#include <span>
#include <vector>

#include "runtime/sampling/sampler.h"
#include "runtime/scheduler/step_plan.h"

namespace shoal {

// How the next token of a sampled slice is chosen: the arguments of sample().
struct SampleInput {
  const SamplingParams* params = nullptr;
  std::span<const int32_t> tokens;
  int32_t prompt_len = 0;
  std::vector<int32_t> end_token_ids;
};

class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // Rank 0: the logits of every sampled slice's last row (of every row of an all_logits slice), in
  // the plan's order: [rows, vocab], host memory valid until the next call. Other ranks: empty.
  // A collective call: all ranks run the same plan.
  virtual std::span<const float> run(const StepPlan& plan) = 0;

  // For rank 0, in place of run(): a token for each sampled slice, `inputs` and result in the plan's
  // order. No slice has all_logits. Devices that can choose tokens themselves do so here.
  virtual std::vector<SampleResult> run_and_sample(const StepPlan& plan,
                                                   std::span<const SampleInput> inputs);
};

// sample() of each input on its row of logits.
std::vector<SampleResult> sample_rows(std::span<const float> logits,  // [inputs, vocab]
                                      std::span<const SampleInput> inputs);

}  // namespace shoal
