// Tensors of made-up values in a device's memory, filled there: a pattern of random values is
// brought up once per type and then copied. The values do not matter for speed, but they must be
// random (a chip at its power limit multiplies zeros faster), finite, and of a size at which a
// whole model stays finite.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "kernels/base/device.h"
#include "kernels/base/tensor.h"

namespace shoal::bench {

class DeviceData {
 public:
  // `device` must outlive it.
  explicit DeviceData(Device& device) : device_(device) {}

  // F32 and BF16: uniform in center +- spread. F8E4M3: |x| < 2; I8, I4x2: every code.
  Tensor values(DType type, std::initializer_list<int64_t> dims, float spread = 1,
                float center = 0);
  Tensor indices(const std::vector<int32_t>& values, std::initializer_list<int64_t> dims);
  // [n, k] with a standard deviation of about 0.017, so that products keep the size of activations.
  // F8E4M3 has blocks of 128x128, I8 and I4x2 groups of 128.
  Weight weight(DType type, int64_t n, int64_t k);
  Tensor uninitialised(DType type, std::initializer_list<int64_t> dims);

  void clear() { buffers_.clear(); }  // every tensor made so far; patterns stay
  std::mt19937& random() { return random_; }

 private:
  const Buffer& pattern(DType type, float spread, float center);

  Device& device_;
  std::mt19937 random_{1};
  std::vector<Buffer> buffers_;
  std::map<std::tuple<DType, float, float>, Buffer> patterns_;
};

}  // namespace shoal::bench
