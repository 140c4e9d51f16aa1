#include "runtime/cache/block_allocator.h"

#include <catch2/catch.hpp>

#include "kernels/base/error.h"

namespace shoal {
namespace {

TEST_CASE("pages are given out once and come back with their last reference") {
  BlockAllocator allocator(3);
  const int32_t a = allocator.allocate();
  const int32_t b = allocator.allocate();
  REQUIRE(a != b);
  REQUIRE(allocator.num_free() == 1);
  allocator.acquire(a);
  allocator.release(a);
  REQUIRE(allocator.references(a) == 1);
  REQUIRE(allocator.num_free() == 1);
  allocator.release(a);
  REQUIRE(allocator.num_free() == 2);
  REQUIRE_THROWS_AS(allocator.release(a), Bug);
  allocator.allocate();
  allocator.allocate();
  REQUIRE_THROWS_AS(allocator.allocate(), Bug);
}

TEST_CASE("the least recently freed page is reused first, and said so") {
  BlockAllocator allocator(3);
  std::vector<int32_t> reused;
  allocator.set_on_reuse([&](int32_t page) { reused.push_back(page); });
  for (int i = 0; i < 3; ++i) allocator.allocate();
  reused.clear();
  for (int32_t page : {2, 0, 1}) allocator.release(page);
  allocator.acquire(0);  // revived
  allocator.release(0);
  REQUIRE(allocator.allocate() == 2);
  REQUIRE(allocator.allocate() == 1);
  REQUIRE(allocator.allocate() == 0);
  REQUIRE(reused == std::vector<int32_t>{2, 1, 0});
}

}  // namespace
}  // namespace shoal
