#include "kernels/cpu/cpu_backend.h"

#include "hwy/highway.h"
#include "kernels/cpu/cpu_ops.h"

namespace shoal {

std::unique_ptr<Ops> make_cpu_ops(int num_threads) { return std::make_unique<CpuOps>(num_threads); }

std::string cpu_target_name() {
  // The best target that was compiled and that the machine has: what HWY_DYNAMIC_DISPATCH chooses.
  const int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  return hwy::TargetName(usable & -usable);
}

}  // namespace shoal
