// What rank 0 broadcasts (StepPlan) and what ranks report (RankReport), as bytes: refused as a Bug, or read to the last
// byte, so that they are the same bytes when written again.
#include <algorithm>
#include <cstdlib>

#include "kernels/base/error.h"
#include "runtime/engine/rank_report.h"
#include "runtime/scheduler/step_plan.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  try {
    const auto again = data[0] % 2 == 0 ? shoal::StepPlan::deserialize(bytes).serialize()
                                        : shoal::RankReport::deserialize(bytes).serialize();
    const auto thrice = data[0] % 2 == 0 ? shoal::StepPlan::deserialize(again).serialize()
                                         : shoal::RankReport::deserialize(again).serialize();
    if (again.size() != bytes.size() || thrice != again) std::abort();
  } catch (const shoal::Bug&) {
  }
  return 0;
}
