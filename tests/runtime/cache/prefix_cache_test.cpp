#include "runtime/cache/prefix_cache.h"

#include <catch2/catch.hpp>
#include <numeric>

namespace shoal {
namespace {

constexpr int32_t kPage = 4;

std::vector<int32_t> tokens(int32_t n, int32_t first = 0) {
  std::vector<int32_t> t(static_cast<size_t>(n));
  std::iota(t.begin(), t.end(), first);
  return t;
}

std::vector<int32_t> allocate(BlockAllocator& allocator, int n) {
  std::vector<int32_t> pages;
  for (int i = 0; i < n; ++i) pages.push_back(allocator.allocate());
  return pages;
}

TEST_CASE("full pages are found, one token is always left to run") {
  BlockAllocator allocator(10);
  PrefixCache cache(allocator, kPage);
  const auto pages = allocate(allocator, 3);
  PrefixCache::Cursor cursor;
  cache.insert("", tokens(10), pages, cursor);
  REQUIRE(cache.size() == 2);
  REQUIRE(cursor.num_pages == 2);
  REQUIRE(cache.find("", tokens(4)).pages.empty());
  REQUIRE(cache.find("", tokens(5)).pages == std::vector<int32_t>{pages[0]});
  REQUIRE(cache.find("", tokens(100)).pages == std::vector<int32_t>{pages[0], pages[1]});
  REQUIRE(cache.find("", {}).pages.empty());
  cache.insert("", tokens(12), pages, cursor);
  REQUIRE(cache.find("", tokens(13)).pages == pages);
  // Equal tokens behind another beginning are another page.
  auto other = tokens(13);
  other[0] = 77;
  REQUIRE(cache.find("", other).pages.empty());
  REQUIRE(cache.find("", tokens(9, 4)).pages.empty());
}

TEST_CASE("an equal page that is known wins, and the chain goes on behind it") {
  BlockAllocator allocator(10);
  PrefixCache cache(allocator, kPage);
  const auto first = allocate(allocator, 1);
  PrefixCache::Cursor a, b;
  cache.insert("", tokens(4), first, a);
  const auto second = allocate(allocator, 2);
  cache.insert("", tokens(8), second, b);
  REQUIRE(cache.size() == 2);
  REQUIRE(cache.find("", tokens(9)).pages == std::vector<int32_t>{first[0], second[1]});
}

TEST_CASE("regression: a child cannot be reached through a page that was reused") {
  BlockAllocator allocator(2);
  PrefixCache cache(allocator, kPage);
  auto pages = allocate(allocator, 2);
  PrefixCache::Cursor cursor;
  cache.insert("", tokens(8), pages, cursor);
  allocator.release(pages[0]);  // the parent goes first
  const int32_t reused = allocator.allocate();
  REQUIRE(reused == pages[0]);
  REQUIRE(cache.size() == 1);
  // The same page now holds another beginning: the child's tokens follow, its state would be wrong.
  auto other = tokens(8);
  std::fill_n(other.begin(), kPage, 50);
  PrefixCache::Cursor fresh;
  cache.insert("", std::span(other).first(kPage), std::vector<int32_t>{reused}, fresh);
  other.push_back(1);
  REQUIRE(cache.find("", other).pages == std::vector<int32_t>{reused});
  REQUIRE(cache.find("", tokens(9)).pages.empty());
}

TEST_CASE("a cursor on a forgotten entry starts again, and enters the sequence's own pages") {
  BlockAllocator allocator(6);
  PrefixCache cache(allocator, kPage);
  const auto known = allocate(allocator, 1);
  PrefixCache::Cursor a, b;
  cache.insert("", tokens(4), known, a);
  const auto mine = allocate(allocator, 3);
  cache.insert("", tokens(8), mine, b);  // mine[1] is entered behind known[0]
  cache.forget(known[0]);
  cache.insert("", tokens(12), mine, b);
  REQUIRE(cache.find("", tokens(13)).pages == mine);
  REQUIRE(cache.size() == 3);
}

TEST_CASE("what one salt entered is found under that salt only, from the first page on") {
  BlockAllocator allocator(10);
  PrefixCache cache(allocator, kPage);
  const auto of_a = allocate(allocator, 3), of_b = allocate(allocator, 3);
  PrefixCache::Cursor a, b;
  cache.insert("a", tokens(8), of_a, a);
  CHECK(cache.find("b", tokens(9)).pages.empty());
  CHECK(cache.find("", tokens(9)).pages.empty());
  cache.insert("b", tokens(12), of_b, b);
  cache.insert("a", tokens(12), of_a, a);
  CHECK(cache.find("a", tokens(13)).pages == of_a);
  CHECK(cache.find("b", tokens(13)).pages == of_b);
  CHECK(cache.size() == 6);
}

TEST_CASE("pages released last-first lose their leaves before their roots") {
  BlockAllocator allocator(4);
  PrefixCache cache(allocator, kPage);
  const auto pages = allocate(allocator, 4);
  PrefixCache::Cursor cursor;
  cache.insert("", tokens(16), pages, cursor);
  for (auto page = pages.rbegin(); page != pages.rend(); ++page) allocator.release(*page);
  allocator.allocate();
  REQUIRE(cache.find("", tokens(17)).pages == std::vector<int32_t>(pages.begin(), pages.end() - 1));
}

}  // namespace
}  // namespace shoal
