// Values that every rank can compute for every other rank, and tensors over host vectors.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/tensor.h"

namespace shoal::test {

// Pseudo-random bits of (seed, i): a finaliser in the style of splitmix64.
inline uint64_t mix(uint64_t seed, uint64_t i) {
  uint64_t x = seed * 0x9e3779b97f4a7c15u + i + 1;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// In [0, bound).
inline int64_t integer_of(uint64_t seed, uint64_t i, int64_t bound) {
  return static_cast<int64_t>(mix(seed, i) % static_cast<uint64_t>(bound));
}

// Small integers: sums of up to 2^17 of them are exact in float in any order.
inline float exact_value(uint64_t seed, uint64_t i) {
  return static_cast<float>(integer_of(seed, i, 129) - 64);
}

// In [-1, 1), with all the bits of a float: sums depend on their order.
inline float random_value(uint64_t seed, uint64_t i) {
  return static_cast<float>(static_cast<int32_t>(mix(seed, i) >> 32)) * 0x1p-31f;
}

inline std::vector<float> random_values(uint64_t seed, int64_t count) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = random_value(seed, i);
  return values;
}

// A view of a vector; the tests' device memory is host memory. An empty vector gets a valid
// pointer.
inline Tensor view(std::vector<float>& values, std::initializer_list<int64_t> dims) {
  values.reserve(1);
  return Tensor(values.data(), DType::kF32, dims);
}
inline Tensor view(std::vector<int32_t>& values, std::initializer_list<int64_t> dims) {
  values.reserve(1);
  return Tensor(values.data(), DType::kI32, dims);
}

}  // namespace shoal::test
