// Shard tables: properties over many totals, ranks and units.
#include "parallel/shard.h"

#include <algorithm>
#include <catch2/catch.hpp>

#include "kernels/base/error.h"
#include "tests/parallel/support/values.h"

namespace shoal {
namespace {

void check_table(int64_t total, int ranks, int64_t unit) {
  CAPTURE(total, ranks, unit);
  const ShardTable table = split_evenly(total, ranks, unit);
  REQUIRE(static_cast<int>(table.size()) == ranks);
  REQUIRE(table.front().begin == 0);
  REQUIRE(table.back().end == total);
  int64_t smallest = total, largest = 0;
  for (int r = 0; r < ranks; ++r) {
    REQUIRE(table[r].begin <= table[r].end);
    if (r > 0) {
      REQUIRE(table[r].begin == table[r - 1].end);
    }
    if (r + 1 < ranks) {
      REQUIRE(table[r].end % unit == 0);
    }
    smallest = std::min(smallest, table[r].size());
    largest = std::max(largest, table[r].size());
  }
  REQUIRE(largest - smallest <= unit);
}

TEST_CASE("split_evenly covers the total without gaps, in units, evenly") {
  for (int64_t total = 0; total <= 40; ++total) {
    for (int ranks = 1; ranks <= 9; ++ranks) {
      for (int64_t unit = 1; unit <= 9; ++unit) check_table(total, ranks, unit);
    }
  }
  for (uint64_t i = 0; i < 2000; ++i) {
    check_table(test::integer_of(1, i, 200'000), static_cast<int>(1 + test::integer_of(2, i, 64)),
                int64_t{1} << test::integer_of(3, i, 8));
  }
}

TEST_CASE("split_evenly of what the models have") {
  using Sizes = std::vector<int64_t>;
  CHECK(sizes_of(split_evenly(16, 3)) == Sizes{5, 5, 6});             // heads of V2-Lite
  CHECK(sizes_of(split_evenly(64, 5)) == Sizes{12, 13, 13, 13, 13});  // its experts
  CHECK(sizes_of(split_evenly(256, 6)) == Sizes{42, 43, 43, 42, 43, 43});
  CHECK(sizes_of(split_evenly(10944, 4, 64)) == Sizes{2688, 2752, 2752, 2752});
  CHECK(split_evenly(102400, 3, 128)[1] == Range{266 * 128, 533 * 128});
  CHECK(sizes_of(split_evenly(2, 4)) == Sizes{0, 1, 0, 1});  // more ranks than units
}

TEST_CASE("column_unit is the largest power of two that divides, at most 128") {
  for (int64_t total = 1; total <= 4096; ++total) {
    const int64_t unit = column_unit(total);
    CAPTURE(total, unit);
    REQUIRE((unit & (unit - 1)) == 0);
    REQUIRE(unit <= 128);
    REQUIRE(total % unit == 0);
    REQUIRE((unit == 128 || total % (2 * unit) != 0));
  }
  CHECK(column_unit(10944) == 64);
  CHECK(column_unit(102400) == 128);
}

TEST_CASE("a split that makes no sense is a bug") {
  CHECK_THROWS_AS(split_evenly(8, 0), Bug);
  CHECK_THROWS_AS(split_evenly(-1, 2), Bug);
  CHECK_THROWS_AS(split_evenly(8, 2, 0), Bug);
  CHECK_THROWS_AS(column_unit(0), Bug);
}

}  // namespace
}  // namespace shoal
