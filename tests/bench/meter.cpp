#include "tests/bench/meter.h"

namespace shoal::bench {

std::unique_ptr<Meter> make_meter(const std::string& device, const MeterOptions& options) {
  if (device == "cpu") return make_cpu_meter(options);
#ifdef SHOAL_WITH_CUDA
  return make_cuda_meter(options);
#else
  throw_invalid("--device {}: this build has cpu only; build with -DSHOAL_CUDA=ON", device);
#endif
}

}  // namespace shoal::bench
