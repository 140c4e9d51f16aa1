// cublaslt_product.h: one product as the stand-in for cuBLASLt has understood it, and its
// arithmetic.
#pragma once

#include <cublasLt.h>

#include <cstdint>

namespace shoal::emulated {

// D[m, n] = alpha A[k, m]^T B[k, n] (+ bias[m]) + beta C[m, n], column-major. Owns nothing: a graph
// replays it on the same addresses.
struct CublasLtProduct {
  int64_t m = 0, n = 0, k = 0;
  int64_t lda = 0, ldb = 0, ldc = 0, ldd = 0;
  cudaDataType_t in = CUDA_R_32F, out = CUDA_R_32F;
  const void* a = nullptr;
  const void* b = nullptr;
  const void* c = nullptr;
  void* d = nullptr;
  float alpha = 1, beta = 0;
  const void* bias = nullptr;
  cudaDataType_t bias_type = CUDA_R_32F;
  // FP8 only. Where the scales are null, they are 1.
  cublasLtMatmulMatrixScale_t a_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  cublasLtMatmulMatrixScale_t b_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  const float* a_scale = nullptr;
  const float* b_scale = nullptr;
  int split_k = 1;
  float* workspace = nullptr;  // [split_k, n, m] when split_k > 1

  // The name of an operand that does not lie in device memory, or null.
  const char* operand_outside_device_memory() const;
  void compute() const;
};

int64_t cublaslt_bytes(cudaDataType_t type);  // of an element

}  // namespace shoal::emulated
