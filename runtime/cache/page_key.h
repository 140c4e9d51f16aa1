// PageKey: the name of a full page's content, the same in every process: SHA-256 over the key of
// the page before it, which for the first page stands for the salt, and its own tokens. So a key stands for all tokens up to the page's end, and
// no two beginnings that anybody can write down share one; state found under a key needs no second
// look at its tokens.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace shoal {

using Sha256 = std::array<uint8_t, 32>;
using PageKey = Sha256;

struct PageKeyHash {
  size_t operator()(const PageKey& key) const {
    size_t h = 0;
    for (size_t i = 0; i < sizeof h; ++i) h = h << 8 | key[i];  // any of its bits are as good
    return h;
  }
};

// False in a build without OpenSSL's libcrypto: pages then have no keys, and what needs them is
// refused.
bool page_keys_supported();

// REQUIRES: page_keys_supported(), as the next.
Sha256 sha256(std::span<const std::byte> first, std::span<const std::byte> second = {});
inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Of the full pages of `tokens`, in order. What one salt gives, no other does (Request::cache_salt).
std::vector<PageKey> page_keys(std::string_view salt, std::span<const int32_t> tokens,
                               int32_t page_size);

std::string to_hex(const Sha256& key);                  // 64 small letters and digits
std::optional<Sha256> from_hex(std::string_view text);  // nothing but what to_hex() gives

}  // namespace shoal
