// quantize_1x128: one warp per token and group of 128 columns, four elements per lane. The warps of
// a block take eight tokens that follow each other at the same columns, so that the scales, whose
// token index is contiguous, are written as one 32-byte sector, while each warp still reads 256
// (BF16) or 512 bytes in a row. Bound by memory: three (five) bytes per element.
#include "kernels/cuda/quantize.h"

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/quantize.cuh"

namespace shoal {
namespace {

using namespace gpu;

constexpr int kTokensPerBlock = 8;  // one warp each
constexpr int kGroupsPerWarp = 4;   // loads in flight; fewer where the row is short
constexpr int kPerLane = kQuantGroup / kWarp;

template <typename T>
__device__ __forceinline__ void load_lane(const T* p, int64_t left, bool aligned,
                                          float (&v)[kPerLane]) {
  if (aligned && left >= kPerLane) {
    T typed[kPerLane];
    if constexpr (sizeof(T) == 4) {
      const uint4 raw = load_16(p);
      memcpy(typed, &raw, 16);
    } else {
      const uint2 raw = *reinterpret_cast<const uint2*>(p);
      memcpy(typed, &raw, 8);
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) v[i] = to_f32(typed[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) v[i] = i < left ? to_f32(p[i]) : 0.0f;
  }
}

template <typename T>
__global__ void quantize_kernel(const T* __restrict__ x, uint8_t* __restrict__ q,
                                float* __restrict__ scales, int64_t tokens, int64_t padded_tokens,
                                int64_t dim, int64_t x_stride, bool x_aligned, bool q_aligned) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t t = int64_t{blockIdx.x} * kTokensPerBlock + warp;
  if (t >= padded_tokens) return;  // a whole warp
  const int64_t groups = (dim + kQuantGroup - 1) / kQuantGroup;
  const int64_t first = int64_t{blockIdx.y} * kGroupsPerWarp;
  float v[kGroupsPerWarp][kPerLane];
#pragma unroll
  for (int n = 0; n < kGroupsPerWarp; ++n) {
    const int64_t column = (first + n) * kQuantGroup + lane * kPerLane;
    // Past the last token or column nothing is read, and zeros are quantised.
    load_lane(x + t * x_stride + column, t < tokens ? dim - column : 0, x_aligned, v[n]);
  }
#pragma unroll
  for (int n = 0; n < kGroupsPerWarp; ++n) {
    const int64_t group = first + n;
    if (group >= groups) break;  // the same for the whole warp
    uint32_t packed;
    const float scale = quantize_group(v[n], packed);
    const int64_t column = group * kQuantGroup + lane * kPerLane, left = dim - column;
    uint8_t* to = q + t * dim + column;
    if (q_aligned && left >= kPerLane) {
      *reinterpret_cast<uint32_t*>(to) = packed;
    } else {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (i < left) to[i] = static_cast<uint8_t>(packed >> (8 * i));
      }
    }
    if (lane == 0) scales[group * padded_tokens + t] = t < tokens ? scale : 1.0f;
  }
}

}  // namespace

void quantize_1x128(const Tensor& x, void* q, float* scales, int64_t padded_tokens,
                    cudaStream_t stream) {
  check_activation(x, 2, "x");
  const int64_t tokens = x.dim(0), dim = x.dim(1);
  SHOAL_CHECK(padded_tokens >= tokens, "x {}, {} padded tokens", x.shape_string(), padded_tokens);
  if (padded_tokens == 0 || dim == 0) return;
  const int64_t groups = (dim + kQuantGroup - 1) / kQuantGroup;
  const int64_t token_blocks = (padded_tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  const int64_t group_blocks = (groups + kGroupsPerWarp - 1) / kGroupsPerWarp;
  SHOAL_CHECK(token_blocks <= 0x7fffffff && group_blocks <= 0xffff, "x {}", x.shape_string());
  const int64_t lane_bytes = kPerLane * dtype_size(x.dtype);
  const bool x_aligned = reinterpret_cast<uintptr_t>(x.data) % lane_bytes == 0 &&
                         x.stride[0] * dtype_size(x.dtype) % lane_bytes == 0;
  const bool q_aligned = reinterpret_cast<uintptr_t>(q) % kPerLane == 0 && dim % kPerLane == 0;
  with_activation_type(x, [&](auto element) {
    using T = decltype(element);
    launch(quantize_kernel<T>,
           dim3(static_cast<unsigned>(token_blocks), static_cast<unsigned>(group_blocks)),
           dim3(kTokensPerBlock * kWarp), 0, stream, x.as<const T>(), static_cast<uint8_t*>(q),
           scales, tokens, padded_tokens, dim, x.stride[0], x_aligned, q_aligned);
  });
}

}  // namespace shoal
