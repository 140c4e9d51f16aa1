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

}  // namespace shoal
