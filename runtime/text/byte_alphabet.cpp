#include "runtime/text/byte_alphabet.h"

#include <array>

#include "runtime/text/unicode.h"

namespace shoal {
namespace {

struct Alphabet {
  std::array<std::string, 256> of_byte;
  std::array<int16_t, 0x180> of_code_point;  // -1 where no byte is meant

  Alphabet() {
    of_code_point.fill(-1);
    // The printable bytes of Latin-1 stand for themselves, the rest for U+0100 and up, in order.
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
                             (byte >= 0xAE && byte <= 0xFF);
      const char32_t code_point = printable ? static_cast<char32_t>(byte) : next++;
      of_byte[static_cast<size_t>(byte)] = to_utf8(code_point);
      of_code_point[code_point] = static_cast<int16_t>(byte);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

const std::string& byte_to_alphabet(uint8_t byte) { return alphabet().of_byte[byte]; }

std::optional<std::string> alphabet_to_bytes(std::string_view token) {
  const Alphabet& table = alphabet();
  std::string bytes;
  bytes.reserve(token.size());
  while (!token.empty()) {
    const Utf8Step step = decode_utf8(token);
    if (!step.valid || step.code_point >= table.of_code_point.size() ||
        table.of_code_point[step.code_point] < 0) {
      return std::nullopt;
    }
    bytes += static_cast<char>(table.of_code_point[step.code_point]);
    token.remove_prefix(step.length);
  }
  return bytes;
}

}  // namespace shoal
