// Weights that one tensor of a safetensors file holds in its own type, with FP8 scales beside it or
// without.
#pragma once

#include <memory>

#include "runtime/checkpoint/stored_weight.h"
#include "runtime/checkpoint/tensor_ref.h"

namespace shoal {

// [n, k] of F32, F16 or BF16. Throws InvalidInput for another shape or type.
std::unique_ptr<StoredWeight> make_plain_weight(TensorRef tensor, int64_t n, int64_t k);

// [n, k] of F8E4M3, with scales [blocks of n, blocks of k] of F32, F16 or BF16. One scale for the
// whole matrix may have any shape.
std::unique_ptr<StoredWeight> make_fp8_weight(TensorRef codes, TensorRef scales, int64_t n,
                                              int64_t k, int32_t block_rows, int32_t block_cols);

// Vectors: F32, F16 or BF16.
std::unique_ptr<StoredWeight> make_plain_vector(TensorRef tensor, int64_t n);

// Whether some of `count` e4m3 codes are NaN (0x7f, 0xff).
bool has_fp8_nan(const std::byte* codes, int64_t count);

}  // namespace shoal
