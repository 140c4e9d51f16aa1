#include "runtime/scheduler/plan_bounds.h"

#include "kernels/base/error.h"

namespace shoal {

void check_plan(const StepPlan& plan, const PlanBounds& bounds) {
  for (const SequenceSlice& s : plan.slices) {
    SHOAL_CHECK(s.from_sample < bounds.previous_samples, "request {}: sample {} of {}", s.request,
                s.from_sample, bounds.previous_samples);
    for (const int32_t page : s.pages) {
      SHOAL_CHECK(page >= 0 && page < bounds.num_pages, "request {}: page {} of {}", s.request, page,
                  bounds.num_pages);
    }
    if (s.from_sample >= 0) continue;  // the token only keeps the place
    for (const int32_t token : s.tokens) {
      SHOAL_CHECK(token >= 0 && token < bounds.vocab_size, "request {}: token {} of {}", s.request,
                  token, bounds.vocab_size);
    }
  }
}

}  // namespace shoal
