#include "runtime/cache/page_key.h"

#ifdef SHOAL_WITH_OPENSSL
#include <openssl/evp.h>

#include <memory>
#endif

#include "kernels/base/error.h"

namespace shoal {

#ifdef SHOAL_WITH_OPENSSL
bool page_keys_supported() { return true; }

Sha256 sha256(std::span<const std::byte> first, std::span<const std::byte> second) {
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(),
                                                                   EVP_MD_CTX_free);
  Sha256 digest;
  const bool ok = context != nullptr &&
                  EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1 &&
                  EVP_DigestUpdate(context.get(), first.data(), first.size()) == 1 &&
                  EVP_DigestUpdate(context.get(), second.data(), second.size()) == 1 &&
                  EVP_DigestFinal_ex(context.get(), digest.data(), nullptr) == 1;
  SHOAL_CHECK(ok, "SHA-256 of {} bytes", first.size() + second.size());
  return digest;
}
#else
bool page_keys_supported() { return false; }

Sha256 sha256(std::span<const std::byte>, std::span<const std::byte>) {
  SHOAL_CHECK(false, "built without OpenSSL");
}
#endif

std::vector<PageKey> page_keys(std::string_view salt, std::span<const int32_t> tokens,
                               int32_t page_size) {
  const auto size = static_cast<size_t>(page_size);
  std::vector<PageKey> keys(tokens.size() / size);
  PageKey before{};
  if (!salt.empty()) before = sha256(bytes_of(salt));
  for (size_t i = 0; i < keys.size(); ++i) {
    before =
        sha256(std::as_bytes(std::span(before)), std::as_bytes(tokens.subspan(i * size, size)));
    keys[i] = before;
  }
  return keys;
}

std::string to_hex(const Sha256& key) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : key) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::optional<Sha256> from_hex(std::string_view text) {
  Sha256 key{};
  if (text.size() != 2 * key.size()) return std::nullopt;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    int digit;
    if (c >= '0' && c <= '9') {
      digit = c - '0';
    } else if (c >= 'a' && c <= 'f') {
      digit = c - 'a' + 10;
    } else {
      return std::nullopt;
    }
    key[i / 2] = static_cast<uint8_t>(key[i / 2] << 4 | digit);
  }
  return key;
}

}  // namespace shoal
