#include "runtime/checkpoint/tensor_ref.h"

#include <cmath>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {

std::string TensorRef::where() const { return file->path() + ": tensor " + in_quotes(name); }

void TensorRef::require_shape(const std::vector<int64_t>& shape) const {
  if (info->shape != shape) {
    throw_invalid("{} has the shape [{}], config.json asks for [{}]", where(),
                  fmt::join(info->shape, ", "), fmt::join(shape, ", "));
  }
}

void TensorRef::require_type(DType dtype) const {
  if (info->dtype != dtype) {
    throw_invalid("{} has the type {}, should be {}", where(), dtype_name(info->dtype),
                  dtype_name(dtype));
  }
}

void TensorRef::read(int64_t columns, Range rows, Range cols, std::byte* out) const {
  const auto element = static_cast<uint64_t>(dtype_size(info->dtype));
  const auto at = [&](int64_t row, int64_t col) {
    return info->begin + static_cast<uint64_t>(row * columns + col) * element;
  };
  if (cols.size() == columns) {
    file->read(at(rows.begin, 0), at(rows.end, 0), out);
    return;
  }
  const uint64_t row_bytes = static_cast<uint64_t>(cols.size()) * element;
  for (int64_t row = rows.begin; row < rows.end; ++row, out += row_bytes) {
    file->read(at(row, cols.begin), at(row, cols.end), out);
  }
}

void TensorRef::read_finite(int64_t columns, Range rows, Range cols, const char* what,
                            float* out) const {
  const int64_t count = rows.size() * cols.size();
  if (info->dtype == DType::kF32) {
    read(columns, rows, cols, reinterpret_cast<std::byte*>(out));
  } else {
    std::vector<uint16_t> stored(count);
    read(columns, rows, cols, reinterpret_cast<std::byte*>(stored.data()));
    const bool half = info->dtype == DType::kF16;
    SHOAL_CHECK(half || info->dtype == DType::kBF16, "{} as {}", where(), dtype_name(info->dtype));
    for (int64_t i = 0; i < count; ++i) {
      out[i] = half ? to_float(F16{stored[i]}) : to_float(BF16{stored[i]});
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(out[i])) throw_invalid("{} holds {} that are not finite", where(), what);
  }
}

}  // namespace shoal
