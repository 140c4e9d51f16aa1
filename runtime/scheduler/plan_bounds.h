// What a rank checks of a plan's numbers before they become places in its memory: they come from another
// process. Lengths are StepPlan::deserialize's, positions and DP ranks StepBatch's matter.
#pragma once

#include <cstdint>

#include "runtime/scheduler/step_plan.h"

namespace shoal {

struct PlanBounds {
  int64_t num_pages = 0;         // pages are [0, num_pages)
  int64_t vocab_size = 0;        // tokens are [0, vocab_size)
  int64_t previous_samples = 0;  // of the step before: from_sample is below it
};

// Throws Bug.
void check_plan(const StepPlan& plan, const PlanBounds& bounds);

}  // namespace shoal
