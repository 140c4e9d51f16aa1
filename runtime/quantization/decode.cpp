#include "runtime/quantization/decode.h"

#include <cstring>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// Number j of a row of packed numbers.
float number(const std::byte* row, DType dtype, int64_t j) {
  const auto load = [&]<typename T>() {
    T value;
    std::memcpy(&value, row + j * sizeof(T), sizeof(T));
    return value;
  };
  switch (dtype) {
    case DType::kF32:
      return load.operator()<float>();
    case DType::kF16:
      return to_float(load.operator()<F16>());
    case DType::kBF16:
      return to_float(load.operator()<BF16>());
    case DType::kF8E4M3:
      return to_float(load.operator()<F8E4M3>());
    case DType::kI8:
      return static_cast<float>(load.operator()<int8_t>());
    case DType::kI4x2: {
      const auto both = static_cast<uint8_t>(row[j / 2]);
      const int nibble = j % 2 == 0 ? both & 15 : both >> 4;
      return static_cast<float>((nibble ^ 8) - 8);
    }
    default:
      SHOAL_CHECK(false, "weights as {}", dtype_name(dtype));
  }
}

}  // namespace

void decode_weight(const StoredWeight& weight, Range rows, Range cols, float* out) {
  if (rows.size() == 0 || cols.size() == 0) return;
  const WeightForm form = weight.form();
  // int4 is read by whole bytes.
  const Range read = form.dtype == DType::kI4x2
                         ? Range{cols.begin / 2 * 2, (cols.end + 1) / 2 * 2}
                         : cols;
  const auto row_bytes = static_cast<int64_t>(form.row_bytes(read.size()));
  std::vector<std::byte> numbers(rows.size() * row_bytes);
  const bool scaled = has_scales(form.dtype);
  const Range block_rows = scaled ? blocks_touched(rows, form.block_rows) : Range{};
  const Range block_cols = scaled ? blocks_touched(read, form.block_cols) : Range{};
  std::vector<float> scale(block_rows.size() * block_cols.size());
  std::vector<float> min(form.has_min ? scale.size() : 0);
  weight.read(rows, read, numbers.data(), scaled ? scale.data() : nullptr,
              form.has_min ? min.data() : nullptr);
  for (int64_t i = 0; i < rows.size(); ++i) {
    const std::byte* row = numbers.data() + i * row_bytes;
    const int64_t scale_row =
        scaled ? ((rows.begin + i) / form.block_rows - block_rows.begin) * block_cols.size() : 0;
    for (int64_t j = cols.begin; j < cols.end; ++j) {
      float value = number(row, form.dtype, j - read.begin);
      if (scaled) {
        const int64_t block = scale_row + j / form.block_cols - block_cols.begin;
        value = value * scale[block] + (form.has_min ? min[block] : 0);
      }
      *out++ = value;
    }
  }
}

}  // namespace shoal
