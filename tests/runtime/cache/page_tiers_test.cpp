#include "runtime/cache/page_tiers.h"

#include <catch2/catch.hpp>
#include <set>

#include "kernels/base/error.h"
#include "tests/support/skip.h"

namespace shoal {
namespace {

PageKey key(int n) {
  PageKey k{};
  k[0] = static_cast<uint8_t>(n);
  k[31] = 1;
  return k;
}

TEST_CASE("keys name all tokens up to a page's end, and full pages only") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  // SHA-256 of "abc", by FIPS 180-2.
  CHECK(to_hex(sha256(bytes_of("abc"))) ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256(bytes_of("ab"), bytes_of("c")) == sha256(bytes_of("abc")));
  const std::vector<int32_t> a = {1, 2, 3, 4, 5, 6, 7, 8, 9}, b = {1, 2, 0, 4, 5, 6, 7, 8, 9};
  const std::vector<PageKey> of_a = page_keys("", a, 4), of_b = page_keys("", b, 4);
  REQUIRE(of_a.size() == 2);
  CHECK(of_a[0] != of_b[0]);
  CHECK(of_a[1] != of_b[1]);  // the same tokens after another beginning
  CHECK(page_keys("", std::span(a).first(4), 4) == std::vector<PageKey>{of_a[0]});
  CHECK(page_keys("", a, 16).empty());
  const std::vector<PageKey> salted = page_keys("salt", a, 4);
  CHECK(salted[0] != of_a[0]);
  CHECK(salted[1] != of_a[1]);
  CHECK(salted != page_keys("other", a, 4));
  CHECK(from_hex(to_hex(of_a[0])) == of_a[0]);
  std::string text = to_hex(of_a[0]);
  CHECK_FALSE(from_hex(text + "0"));
  CHECK_FALSE(from_hex(text.substr(1)));
  text[5] = 'G';
  CHECK_FALSE(from_hex(text));
}

TEST_CASE("a slot without references keeps its page until it is needed, oldest first") {
  HostTier host(3);
  std::vector<int32_t> slots;
  for (int i = 0; i < 3; ++i) {
    slots.push_back(host.take());
    host.enter(slots.back(), key(i));
  }
  CHECK(host.available() == 0);
  for (const int32_t slot : slots) host.release(slot);
  CHECK(host.available() == 3);
  CHECK(host.find(key(0)) == slots[0]);
  host.acquire(slots[0]);  // used again: now 1 is the oldest
  host.release(slots[0]);
  CHECK(host.take() == slots[1]);
  CHECK_FALSE(host.find(key(1)));
  CHECK(host.find(key(2)) == slots[2]);
  host.acquire(slots[2]);
  CHECK(host.take() == slots[0]);  // what is referenced stays
  CHECK(host.available() == 0);
  CHECK(host.find(key(2)) == slots[2]);
  host.enter(slots[0], key(2));  // known already
  CHECK(host.find(key(2)) == slots[2]);
  host.release(slots[0]);
  CHECK(host.take() == slots[0]);
  CHECK(host.find(key(2)) == slots[2]);
}

TEST_CASE("files give way in the order of their last use") {
  DiskTier disk(3, {key(1), key(2)});
  CHECK(disk.contains(key(1)));
  CHECK_FALSE(disk.insert(key(3)));
  disk.touch(key(1));
  CHECK(disk.insert(key(4)) == key(2));
  CHECK_FALSE(disk.insert(key(3)));  // known: used
  CHECK(disk.insert(key(5)) == key(1));
  disk.erase(key(4));
  disk.erase(key(77));
  CHECK_FALSE(disk.insert(key(6)));
  CHECK(disk.size() == 3);
  CHECK_THROWS_AS(DiskTier(1, {key(1), key(2)}), Bug);
}

}  // namespace
}  // namespace shoal
