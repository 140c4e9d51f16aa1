#include "runtime/checkpoint/stored_weight.h"

namespace shoal {

Range blocks_touched(Range range, int64_t size) {
  if (range.size() == 0) return {0, 0};
  return {range.begin / size, (range.end + size - 1) / size};
}

uint64_t WeightForm::row_bytes(int64_t columns) const {
  return static_cast<uint64_t>(dtype == DType::kI4x2 ? columns / 2 : columns * dtype_size(dtype));
}

uint64_t WeightForm::bytes(Range rows, Range cols) const {
  if (rows.size() == 0 || cols.size() == 0) return 0;
  uint64_t total = static_cast<uint64_t>(rows.size()) * row_bytes(cols.size());
  if (has_scales(dtype)) {
    const auto blocks = static_cast<uint64_t>(blocks_touched(rows, block_rows).size() *
                                              blocks_touched(cols, block_cols).size());
    total += blocks * sizeof(float) * (has_min ? 2 : 1);
  }
  return total;
}

}  // namespace shoal
