// StepRunner: what the engine needs of a rank's model: one step of a plan. Implemented by ModelRunner,
// and by models of a few lines in the tests of the engine.
#pragma once

#include <span>

#include "runtime/scheduler/step_plan.h"

namespace shoal {

class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // Rank 0: the logits of every sampled slice's last row (of every row of an all_logits slice), in
  // the plan's order: [rows, vocab], host memory valid until the next call. Other ranks: empty.
  // A collective call: all ranks run the same plan.
  virtual std::span<const float> run(const StepPlan& plan) = 0;
};

}  // namespace shoal
