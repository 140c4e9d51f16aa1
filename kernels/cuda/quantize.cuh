// quantize.cuh: the FP8 quantiser of one group of 128 columns, for kernels that have the values in
// registers. The rule (quantize.h): scale = max |x| / 448, q = x / scale to nearest even.
#pragma once

#include "kernels/cuda/gpu.h"

namespace shoal::gpu {

constexpr float kMaxE4m3 = 448.0f;
// The smallest maximum that is divided by: 448 / 2^-100 and its square root stay finite and normal,
// and activations that small are zeros for every model. Without it a group of zeros would be 0 / 0.
constexpr float kMinGroupMax = 0x1p-100f;

// A warp holds one group, four elements per lane. On return each lane has its four e4m3 in
// `packed`, the first in the low byte; all lanes have the scale.
__device__ __forceinline__ float quantize_group(const float (&v)[4], uint32_t& packed) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(v[i]));  // passes over NaN
  largest = fmaxf(warp_max(largest), kMinGroupMax);
  const float scale = largest / kMaxE4m3;
  const float inverse = kMaxE4m3 / largest;
  e4m3 q[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) q[i] = from_f32<e4m3>(v[i] * inverse);
  memcpy(&packed, q, 4);
  return scale;
}

}  // namespace shoal::gpu
