// Who holds what: pure arithmetic of ranges, from tables rather than divisions, so that 3, 5 or 6
// ranks work on 16 heads or 64 experts.
#pragma once

#include <cstdint>
#include <vector>

namespace shoal {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool contains(int64_t i) const { return begin <= i && i < end; }
  bool operator==(const Range&) const = default;
};

// ranges[r] = what rank r holds of [0, total). Contiguous, in rank order, sizes differ by at most one
// `unit`; every boundary but the last is a multiple of `unit`.
using ShardTable = std::vector<Range>;
ShardTable split_evenly(int64_t total, int ranks, int64_t unit = 1);

// The unit in which a matrix dimension is cut: the largest power of two that divides it, at most
// 128 (the FP8 block, and a multiple of every SIMD width).
int64_t column_unit(int64_t total);

// Rows per rank, in rank order.
std::vector<int64_t> sizes_of(const ShardTable& table);

}  // namespace shoal
