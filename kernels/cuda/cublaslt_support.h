// What the library's kernels leave to us: bringing scales into the layout that it demands, and
// adding a bias of a type that its epilogue does not take. All launch on `stream` and can be
// captured.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/base/tensor.h"

namespace shoal {

// padded[i, j] = scale[i, j], and 0 for the columns that scale lacks.
void pad_columns(const Tensor& scale,   // [rows, cols] F32, may be strided in rows
                 const Tensor& padded,  // [rows, padded cols] F32, dense
                 cudaStream_t stream);

// out = product (+ bias), rounded once. Rows of product past those of out are not read.
void store_product(const Tensor& product,  // [>= T, n] F32, dense
                   const Tensor& bias,     // [n] F32, or undefined
                   const Tensor& out,      // [T, n] F32 | BF16, may be strided in rows
                   cudaStream_t stream);

}  // namespace shoal
