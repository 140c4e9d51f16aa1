// scan.cuh: prefix sums over a block.
#pragma once

#include "kernels/cuda/gpu.h"

namespace shoal::gpu {

// The sum of the values of all lower threads; `total` is that of all. `scratch` is shared memory of
// 32 elements; the block must have a multiple of 32 threads in x only, all of which call. For
// integers.
template <typename T>
__device__ __forceinline__ T exclusive_scan(T value, T* scratch, T& total) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  T sum = value;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const T below = __shfl_up_sync(kFullMask, sum, offset);
    if (lane >= offset) sum += below;
  }
  if (lane == kWarp - 1) scratch[warp] = sum;
  __syncthreads();
  T before = 0;
  total = 0;
  for (int w = 0; w < warps; ++w) {
    if (w < warp) before += scratch[w];
    total += scratch[w];
  }
  __syncthreads();  // scratch may be used again
  return before + sum - value;
}

}  // namespace shoal::gpu
