// Sampling on a GPU, the one piece of a step that is no verb.
#pragma once

#include "tests/bench/kernel_plan.h"
#include "tests/bench/meter.h"
#include "tests/bench/report.h"

namespace shoal::bench {

// Rows of greedy and of drawn tokens at each model's vocabulary; none when the meter's is no GPU.
void sampling_rows(Meter& meter, Report& report, const KernelPlan& plan);

}  // namespace shoal::bench
