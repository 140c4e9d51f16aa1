// Tensor: a non-owning, typed, strided view of device memory. Copying one copies the view.
//
// The names of dimensions, used in every shape comment of this project:
//   num_tokens (T)  tokens of this step on this rank          num_seqs (S)    sequences of this step
//   hidden          model width                               num_heads (H)   heads held by this rank
//   head_dim, qk_nope, qk_rope, v_head_dim, kv_lora, q_lora   per head / latent widths
//   num_experts (E) routed experts; local_experts those of this rank; top_k experts per token
//   vocab           vocabulary rows of this rank              page_size       tokens per KV page
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/base/dtype.h"
#include "kernels/base/error.h"

namespace shoal {

struct Tensor {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> stride{};  // in elements; the last dimension always has stride 1

  Tensor() = default;
  // Contiguous, row-major. `data` must hold num_elements() * dtype_size(dtype) bytes.
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> dims);

  bool defined() const { return data != nullptr || rank > 0; }
  int64_t dim(int i) const { return shape[i]; }
  int64_t num_elements() const;
  int64_t num_bytes() const { return num_elements() * dtype_size(dtype); }
  bool contiguous() const;

  // REQUIRES: T is the C++ type of dtype (checked by size only).
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  // Pointer to row i of the first dimension.
  template <typename T>
  T* row(int64_t i) const {
    return static_cast<T*>(data) + i * stride[0];
  }

  // The view of [begin, end) along dimension `d`.
  Tensor slice(int d, int64_t begin, int64_t end) const;
  // Same elements, other shape. REQUIRES: contiguous.
  Tensor reshape(std::initializer_list<int64_t> dims) const;
  // Splits the last dimension into two: [.., a*b] -> [.., a, b]; keeps outer strides.
  Tensor split_last(int64_t a, int64_t b) const;
  std::string shape_string() const;  // "float32[3, 64]"
};

// A weight of a linear map y = x W^T: [n, k], each row contiguous. FP8, INT8 and INT4 weights carry fp32
// scales, one per block_rows x block_cols block of the *unsharded* matrix (DeepSeek FP8: 128x128; INT8
// and INT4: rows of 1, groups of 16, 32, 64 or 128, INT8 also the whole row). A shard that begins inside
// a block keeps the whole blocks that it touches and says where it begins in them:
//   value(i, j) = number(data[i, j]) * scale[b] + min[b],
//   b = ((i + row_offset) / block_rows, (j + col_offset) / block_cols)
// Asymmetric formats have a min: AWQ and GPTQ store (q - zero) * scale, GGUF's Q4_1 and K formats
// q * scale +- min.
struct Weight {
  Tensor data;   // [n, k] F32 | F16 | BF16 | F8E4M3 | I8, or [n, k / 2] I4x2 (k and col_offset even)
  Tensor scale;  // [blocks of n, blocks of k] F32; undefined for F32, F16 and BF16
  Tensor min;    // as scale, of I8 and I4x2 only; undefined: 0
  int32_t block_rows = 0;
  int32_t block_cols = 0;
  int32_t row_offset = 0;  // < block_rows
  int32_t col_offset = 0;  // < block_cols

  int64_t n() const { return data.dim(0); }
  int64_t k() const { return data.dim(1) * (data.dtype == DType::kI4x2 ? 2 : 1); }
  int64_t num_bytes() const {
    return data.num_bytes() + (scale.rank ? scale.num_bytes() : 0) + (min.rank ? min.num_bytes() : 0);
  }
};

// Whether values of this type mean nothing without a scale: F8E4M3, I8, I4x2.
bool has_scales(DType weight_type);
// Trips SHOAL_CHECK on a weight that no back end could multiply with: type, strides, offsets, and scales
// that do not cover the rows and columns.
void check_weight(const Weight& w);

}  // namespace shoal
