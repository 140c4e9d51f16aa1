#include "runtime/offload/expert_placement.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/error.h"

namespace shoal {

int64_t stream_min_rows(uint64_t expert_bytes, int64_t expert_parameters,
                        double link_gigabytes_per_s, int cpu_threads) {
  if (link_gigabytes_per_s <= 0) return std::numeric_limits<int64_t>::max();
  // AVX2 at 3 GHz: two multiply-adds of 8 floats a cycle are 96 GFLOP/s a core, of which decoding
  // the weights leaves a third.
  constexpr double kFlopsPerThread = 30e9;
  const double stream_s = static_cast<double>(expert_bytes) / (link_gigabytes_per_s * 1e9);
  const double row_s =
      2.0 * static_cast<double>(expert_parameters) / (kFlopsPerThread * cpu_threads);
  return std::max<int64_t>(static_cast<int64_t>(std::ceil(stream_s / row_s)), 1);
}

OffloadMode parse_offload_mode(const std::string& value) {
  if (value == "auto") return OffloadMode::kAuto;
  if (value == "cpu") return OffloadMode::kCpu;
  if (value == "stream") return OffloadMode::kStream;
  throw_invalid("--expert-offload {}: use off, auto, cpu or stream", value);
}

}  // namespace shoal
