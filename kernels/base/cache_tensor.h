// CacheTensor: a layer's keys, values, or latent rows (MLA: both in one) in a paged KV cache, one row a slot.
#pragma once

#include "kernels/base/tensor.h"

namespace shoal {

// F32 and BF16: the row is data, the others are undefined. F8E4M3 and I8, one scale per group of columns:
//   row[j] = number(data[slot, j]) * scale[slot, j / group], group = data.dim(1) / scale.dim(1),
// followed by the elements of `rope`, if defined, which stay as they are.
struct CacheTensor {
  Tensor data;   // [num_slots, n] F32 | BF16 | F8E4M3 | I8, strided in rows
  Tensor scale;  // [num_slots, groups] F32, strided in rows
  Tensor rope;   // [num_slots, qk_rope] BF16, strided in rows

  bool quantised() const { return has_scales(data.dtype); }
  int64_t dim() const { return data.dim(1) + (rope.defined() ? rope.dim(1) : 0); }
  int64_t groups() const { return scale.dim(1); }
  std::string shape_string() const;
};

// Trips SHOAL_CHECK on types and shapes that are not as above; `name` is the verb's.
void check_cache(const CacheTensor& cache, const char* name);

// How a group of values becomes codes, on every back end in the same bits: scale = m / limit and code =
// round(x * (limit / m)) to nearest even, m being the largest magnitude of the group. A group below
// kCacheMinMax is stored as zeros with scale 0 (448 / m would not be finite, and no model tells such
// activations from zeros). A group that holds an infinity or a NaN gets scale NaN, and so reads as NaN.
inline constexpr float kCacheMinMax = 0x1p-100f;
inline constexpr float cache_limit(DType dtype) { return dtype == DType::kI8 ? 127.0f : 448.0f; }

}  // namespace shoal
