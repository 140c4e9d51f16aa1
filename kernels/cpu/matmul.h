// Matrix products y = x W^T of one or many weights, shared by linear, head_linear and
// grouped_linear.
//
// Every output element has one vector accumulator whose lanes run over k in order, whatever the
// number of rows, the tile it falls in or the thread that computes it, so that a row of the result
// does not depend on its neighbours, in bits. See docs/kernels.md.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/tensor.h"
#include "kernels/cpu/thread_pool.h"

namespace shoal {

// out[i, j] = sum_k x[i, k] w[j, k] (+ bias[j]). Strides in elements.
struct MatMul {
  const float* x = nullptr;  // [m, k]
  int64_t x_stride = 0;
  Weight w;                     // [n, k]
  const float* bias = nullptr;  // [n] or null
  float* out = nullptr;         // [m, n]
  int64_t out_stride = 0;
  int64_t m = 0;
};

// Floats of scratch that run_matmuls needs per worker.
int64_t matmul_scratch_floats();

// scratch(worker) returns that worker's matmul_scratch_floats() floats.
// REQUIRES: weights passed check_weight.
struct ScratchFloats {
  float* base;
  int64_t stride;
};
void run_matmuls(std::span<const MatMul> products, ThreadPool& pool, ScratchFloats scratch);

// A row of w, as floats or, rounded, BF16: to k elements.
void decode_weight_row(const Weight& w, int64_t row, float* out);
void decode_weight_row(const Weight& w, int64_t row, BF16* out);

}  // namespace shoal
