// mla_prefill as its kernels see it.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace shoal::gpu {

// Strides are in elements.
struct PrefillCall {
  const void* q;             // [T, H, nope + rope]
  const void* kv;            // [num_keys, H, nope + dv]
  const void* k_pe;          // [num_keys, rope]
  const int32_t* positions;  // [T]
  float* acc;                // [T, H, dv]
  float* row_max;            // [T, H]
  float* row_sum;            // [T, H]
  int64_t q_token, q_head, kv_token, kv_head, k_pe_token, acc_token, acc_head, stat_token;
  int32_t num_tokens, num_keys, first_position;
  int32_t nope, rope, dv;
  float scale;  // softmax_scale * log2(e)

  // How many keys of the chunk a query sees.
  __device__ __forceinline__ int32_t keys_of(int64_t token) const {
    return min(max(positions[token] + 1 - first_position, 0), num_keys);
  }
  __device__ __forceinline__ float* acc_row(int64_t token, int64_t head) const {
    return acc + token * acc_token + head * acc_head;
  }
};

}  // namespace shoal::gpu
