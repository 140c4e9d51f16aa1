// Meter: a device under measurement, what it can do at most, and how long a verb takes on it.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/device.h"
#include "kernels/ops.h"
#include "tests/bench/limits.h"

namespace shoal::bench {

struct MeterOptions {
  int threads = 1;             // CPU
  Clock clock = Clock::kWall;  // CPU
  int repeats = 7;
  bool tiny = false;  // a check that everything runs, in seconds: the figures mean nothing
};

class Meter {
 public:
  virtual ~Meter() = default;
  virtual Device& device() = 0;
  virtual Ops& ops() = 0;
  virtual DType activation() const = 0;
  virtual std::string name() const = 0;
  // Measured at construction.
  double bandwidth() const { return bandwidth_; }  // bytes per second
  double math_rate() const { return math_rate_; }  // floating-point operations per second
  // Weights and caches are taken in turn from as many bytes, so that each call finds them in memory
  // and not in a cache, as a step does.
  virtual int64_t cold_bytes() const = 0;
  // Seconds of one call: the median of the repeats. `call` works on set i % sets of its inputs at
  // its i-th call; a repeat is a multiple of `sets` calls.
  virtual double seconds(const std::function<void()>& call, int sets) = 0;
  // The same for work that cannot be recorded in a graph: what the host takes to issue it counts
  // too.
  virtual double seconds_issued(const std::function<void()>& call) { return seconds(call, 1); }

 protected:
  double bandwidth_ = 0, math_rate_ = 0;
};

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Limits: read bandwidth, and FP32 multiply-adds in registers.
std::unique_ptr<Meter> make_cpu_meter(const MeterOptions& options);
// Limits: a copy from device memory to device memory (bytes read and written), and the BF16 matrix
// rate of cuBLASLt on a large square product. Throws InvalidInput where there is no GPU, or in a
// build without CUDA.
std::unique_ptr<Meter> make_cuda_meter(const MeterOptions& options);
// device: cpu or cuda.
std::unique_ptr<Meter> make_meter(const std::string& device, const MeterOptions& options);

}  // namespace shoal::bench
