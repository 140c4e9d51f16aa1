// When requests are sent: times from the start of a run, never decreasing. Not thread-safe.
#pragma once

#include <cstdint>
#include <random>

#include "server/load/load_options.h"

namespace shoal {

class Arrivals {
 public:
  // Of --arrival, --request-rate, --burstiness, --burst-size and --seed. A rate of infinity: all at
  // 0. Throws InvalidInput for values out of range.
  explicit Arrivals(const BenchServeOptions& options);
  double next();  // seconds

 private:
  enum class Kind { kAtOnce, kGamma, kConstant, kBurst };
  Kind kind_;
  const double rate_;
  const int burst_size_;
  std::mt19937_64 random_;
  std::gamma_distribution<double> gap_;
  double now_ = 0;
  int64_t count_ = 0;
};

}  // namespace shoal
