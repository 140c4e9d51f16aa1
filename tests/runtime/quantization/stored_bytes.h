// What a StoredWeight reads, as one value to compare.
#pragma once

#include <cstring>
#include <vector>

#include "runtime/checkpoint/stored_weight.h"

namespace shoal::test {

struct Read {
  std::vector<std::byte> numbers;
  std::vector<float> scale, min;
  bool operator==(const Read&) const = default;
};

inline Read read_all(const StoredWeight& weight, Range rows, Range cols) {
  const WeightForm form = weight.form();
  Read read;
  read.numbers.resize(rows.size() * form.row_bytes(cols.size()));
  if (has_scales(form.dtype)) {
    read.scale.resize(blocks_touched(rows, form.block_rows).size() *
                      blocks_touched(cols, form.block_cols).size());
    if (form.has_min) read.min.resize(read.scale.size());
  }
  weight.read(rows, cols, read.numbers.data(), read.scale.empty() ? nullptr : read.scale.data(),
              read.min.empty() ? nullptr : read.min.data());
  return read;
}

inline Read read_all(const StoredWeight& weight) {
  return read_all(weight, {0, weight.n()}, {0, weight.k()});
}

}  // namespace shoal::test
