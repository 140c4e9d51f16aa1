#include "parallel/shard.h"

#include <algorithm>
#include <bit>

#include "kernels/base/error.h"

namespace shoal {

ShardTable split_evenly(int64_t total, int ranks, int64_t unit) {
  SHOAL_CHECK(total >= 0 && ranks >= 1 && unit >= 1, "split {} over {} ranks in units of {}", total,
              ranks, unit);
  // Rounding every boundary down leaves the larger parts to later ranks. The last rank thus has the
  // largest number of units, so that an incomplete last unit never makes it smaller than the others
  // by more than one unit; and rank 0, which also schedules and samples, never has the most work.
  const int64_t units = (total + unit - 1) / unit;
  ShardTable table(ranks);
  int64_t begin = 0;
  for (int r = 0; r < ranks; ++r) {
    const int64_t end = std::min(total, units * (r + 1) / ranks * unit);
    table[r] = {begin, end};
    begin = end;
  }
  return table;
}

int64_t column_unit(int64_t total) {
  SHOAL_CHECK(total > 0, "a dimension of {}", total);
  const int power = std::countr_zero(static_cast<uint64_t>(total));
  return int64_t{1} << std::min(power, 7);
}

std::vector<int64_t> sizes_of(const ShardTable& table) {
  std::vector<int64_t> sizes;
  sizes.reserve(table.size());
  for (const Range& range : table) sizes.push_back(range.size());
  return sizes;
}

}  // namespace shoal
