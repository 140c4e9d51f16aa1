// Fragments of mma.m16n8k16 as attention uses them, all from bfloat16 rows in shared memory. Row
// pitches are 16 bytes more than a multiple of 32 banks (or otherwise spread), so that the 8 rows
// that ldmatrix reads at a time lie in different banks.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace shoal::gpu {

// A, 16 rows x 16 columns at `tile`.
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const bf16* tile, int pitch) {
  const int lane = threadIdx.x % kWarp;
  ldmatrix_x4(a, tile + lane % 16 * pitch + lane / 16 * 8);
}

// B for the scores: columns of B are keys, rows of `tile`. 16 keys x 16 elements: b[0..1] is the
// fragment of the first 8 keys, b[2..3] that of the others.
__device__ __forceinline__ void load_keys_16x16(uint32_t (&b)[4], const bf16* tile, int pitch) {
  const int lane = threadIdx.x % kWarp;
  ldmatrix_x4(b, tile + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8);
}

// The same of 8 keys x 32 elements: b[0..1] for the first 16 elements, b[2..3] for the others.
__device__ __forceinline__ void load_keys_8x32(uint32_t (&b)[4], const bf16* tile, int pitch) {
  const int lane = threadIdx.x % kWarp;
  ldmatrix_x4(b, tile + lane % 8 * pitch + lane / 8 * 8);
}

// B for the output: rows of B are keys, rows of `tile`. 16 keys x 16 columns: b[0..1] is the
// fragment of the first 8 columns, b[2..3] that of the others.
__device__ __forceinline__ void load_values_16x16(uint32_t (&b)[4], const bf16* tile, int pitch) {
  const int lane = threadIdx.x % kWarp;
  ldmatrix_x4_trans(b, tile + lane % 16 * pitch + lane / 16 * 8);
}

__device__ __forceinline__ void mma_halves(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4],
                                           const uint32_t (&b)[4]) {
  const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
  mma_m16n8k16_bf16(d0, a, b0);
  mma_m16n8k16_bf16(d1, a, b1);
}

// Reductions over the four lanes that hold a row of a D fragment.
__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kFullMask, value, 1));
  return fmaxf(value, __shfl_xor_sync(kFullMask, value, 2));
}
__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(kFullMask, value, 1);
  return value + __shfl_xor_sync(kFullMask, value, 2);
}

// Two neighbouring elements. REQUIRES: `to` is aligned to both together.
__device__ __forceinline__ void store_pair(bf16* to, float a, float b) {
  *reinterpret_cast<uint32_t*>(to) = pack_bf16(a, b);
}
__device__ __forceinline__ void store_pair(float* to, float a, float b) {
  *reinterpret_cast<float2*>(to) = make_float2(a, b);
}

// What a thread keeps of its rows g and g + 8 (g = lane / 4) while keys go by. `sum` is of the keys
// whose scores this thread held.
struct RowPair {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
};

}  // namespace shoal::gpu
