#include "kernels/base/tensor.h"

namespace shoal {

Tensor::Tensor(void* data, DType dtype, std::initializer_list<int64_t> dims)
    : data(data), dtype(dtype), rank(static_cast<int>(dims.size())) {
  SHOAL_CHECK(rank <= kMaxRank, "rank {}", rank);
  int i = 0;
  for (int64_t d : dims) shape[i++] = d;
  int64_t step = 1;
  for (int j = rank - 1; j >= 0; --j) {
    stride[j] = step;
    step *= shape[j];
  }
}

int64_t Tensor::num_elements() const {
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= shape[i];
  return n;
}

bool Tensor::contiguous() const {
  int64_t step = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && stride[i] != step) return false;
    step *= shape[i];
  }
  return true;
}

Tensor Tensor::slice(int d, int64_t begin, int64_t end) const {
  SHOAL_CHECK(d < rank && 0 <= begin && begin <= end && end <= shape[d], "slice [{}, {}) of dim {} of {}",
              begin, end, d, shape_string());
  Tensor view = *this;
  view.data = static_cast<std::byte*>(data) + begin * stride[d] * dtype_size(dtype);
  view.shape[d] = end - begin;
  return view;
}

Tensor Tensor::reshape(std::initializer_list<int64_t> dims) const {
  Tensor view(data, dtype, dims);
  SHOAL_CHECK(contiguous() && view.num_elements() == num_elements(), "reshape {} to {}",
              shape_string(), view.shape_string());
  return view;
}

Tensor Tensor::split_last(int64_t a, int64_t b) const {
  SHOAL_CHECK(rank >= 1 && rank < kMaxRank && shape[rank - 1] == a * b, "split {} into {} x {}",
              shape_string(), a, b);
  Tensor view = *this;
  view.rank = rank + 1;
  view.shape[rank - 1] = a;
  view.stride[rank - 1] = b;
  view.shape[rank] = b;
  view.stride[rank] = 1;
  return view;
}

std::string Tensor::shape_string() const {
  std::string text = std::string(dtype_name(dtype)) + "[";
  for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

bool has_scales(DType weight_type) {
  return weight_type == DType::kF8E4M3 || weight_type == DType::kI8 || weight_type == DType::kI4x2;
}

void check_weight(const Weight& w) {
  const Tensor& data = w.data;
  const DType type = data.dtype;
  SHOAL_CHECK(data.rank == 2 && data.dim(1) > 0 && data.stride[1] == 1, "weight is {}",
              data.shape_string());
  if (!has_scales(type)) {
    SHOAL_CHECK(type == DType::kF32 || type == DType::kF16 || type == DType::kBF16, "weight is {}",
                data.shape_string());
    return;
  }
  SHOAL_CHECK(w.block_rows > 0 && w.block_cols > 0 && w.row_offset >= 0 && w.col_offset >= 0 &&
                  w.row_offset < w.block_rows && w.col_offset < w.block_cols,
              "blocks {} x {}, offsets {}, {}", w.block_rows, w.block_cols, w.row_offset,
              w.col_offset);
  // The two numbers of a byte share their scale.
  SHOAL_CHECK(type != DType::kI4x2 || (w.block_cols % 2 == 0 && w.col_offset % 2 == 0),
              "blocks of {} columns of int4, offset {}", w.block_cols, w.col_offset);
  SHOAL_CHECK(w.scale.rank == 2 && w.scale.dtype == DType::kF32 && w.scale.stride[1] == 1 &&
                  w.scale.dim(0) * w.block_rows >= w.n() + w.row_offset &&
                  w.scale.dim(1) * w.block_cols >= w.k() + w.col_offset,
              "scale {} of weight {}", w.scale.shape_string(), data.shape_string());
  SHOAL_CHECK(!w.min.defined() || (type != DType::kF8E4M3 && w.min.dtype == DType::kF32 &&
                                   w.min.rank == 2 && w.min.stride == w.scale.stride &&
                                   w.min.shape == w.scale.shape),
              "min {} beside scale {} of {}", w.min.shape_string(), w.scale.shape_string(),
              data.shape_string());
}

}  // namespace shoal
