// ordered.cuh: floats as unsigned integers of the same order, so that "largest value, lowest index
// of equals" is the maximum of one 64-bit integer.
#pragma once

#include "kernels/cuda/gpu.h"

namespace shoal::gpu {

// Both zeros alike; NaN above all, so that it is found and not passed over.
__device__ __forceinline__ uint32_t ordered(float x) {
  if (x != x) return 0xffffffffu;
  if (x == 0) return 0x80000000u;
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Ranks by value, then the lower index first. Never 0.
__device__ __forceinline__ uint64_t ranked(uint32_t key, int32_t index) {
  return uint64_t{key} << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
__device__ __forceinline__ int32_t index_of_rank(uint64_t rank) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(rank));
}
__device__ __forceinline__ float value_of_rank(uint64_t rank) {
  return from_ordered(static_cast<uint32_t>(rank >> 32));
}

}  // namespace shoal::gpu
