// quantize.cuh: the FP8 quantiser of one group of 128 columns, for kernels that have the values in
// registers. The rule (quantize.h): scale = max |x| / 448, q = x / scale to nearest even.
#pragma once

#include <type_traits>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/quantize.h"
#include "kernels/cuda/quantized_twin.h"

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

// The quantised twin of eight elements (as rows.cuh's packs) of a row that a kernel writes, as they
// are stored: half a warp holds one group. `column`: of the first, in rows of `dim`, a multiple of
// 128. All lanes of the warp call it; those that have no elements say so.
__device__ __forceinline__ void store_twin(const TwinView& twin, const float (&v)[8],
                                           bool has_elements, int64_t row, int64_t column,
                                           int64_t dim) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
  for (int offset = kWarp / 4; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, offset));
  }
  if (!has_elements) return;
  largest = fmaxf(largest, kMinGroupMax);
  const float inverse = kMaxE4m3 / largest;
  e4m3 q[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) q[i] = from_f32<e4m3>(v[i] * inverse);
  uint2 packed;
  memcpy(&packed, q, 8);
  *reinterpret_cast<uint2*>(twin.codes + row * dim + column) = packed;
  if (column % kQuantGroup == 0) {
    twin.scales[column / kQuantGroup * twin.padded_rows + row] = largest / kMaxE4m3;
  }
}

// The rows past the last, as quantize.h has them. By all threads of one block.
__device__ __forceinline__ void pad_twin(const TwinView& twin, int64_t rows, int64_t dim) {
  for (int64_t row = rows; row < twin.padded_rows; ++row) {
    for (int64_t i = threadIdx.x; i < dim / 8; i += blockDim.x) {
      *reinterpret_cast<uint2*>(twin.codes + row * dim + 8 * i) = make_uint2(0, 0);
    }
    for (int64_t g = threadIdx.x; g < dim / kQuantGroup; g += blockDim.x) {
      twin.scales[g * twin.padded_rows + row] = 1.0f;
    }
  }
}

// Calls body(std::true_type) where a kernel that writes Out has a twin to fill, else
// body(std::false_type).
template <typename Out, typename Body>
void with_twin(const TwinView& twin, const Body& body) {
  if constexpr (std::is_same_v<Out, bf16>) {
    if (twin.codes != nullptr) return body(std::true_type());
  }
  body(std::false_type());
}

}  // namespace shoal::gpu
