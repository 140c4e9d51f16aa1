#include "runtime/text/unicode.h"

#include <catch2/catch.hpp>
#include <string>

namespace shoal {
namespace {

TEST_CASE("Ill-formed UTF-8 is replaced by maximal subpart, as Python does") {
  // Input and the number of U+FFFD that bytes.decode("utf-8", "replace") gives.
  const std::pair<std::string, std::string> cases[] = {
      {"\x80", "\uFFFD"},
      {"\xC0\x80", "\uFFFD\uFFFD"},                      // overlong: no such lead byte
      {"\xE0\x80\x80", "\uFFFD\uFFFD\uFFFD"},            // overlong by its second byte
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},            // a surrogate
      {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},  // above U+10FFFF
      {"\xF5", "\uFFFD"},
      {"\xE6\x97", "\uFFFD"},  // cut off: one for both bytes
      {"\xF0\x9F\x99", "\uFFFD"},
      {"\xE6\x97x", "\uFFFDx"},
      {"\xF0\x9F\xE6\x97\xA5", "\uFFFD\u65E5"},
      {"a\xC3\xA9z", "a\u00E9z"},
  };
  for (const auto& [input, expected] : cases) {
    CHECK(replace_invalid_utf8(input) == expected);
    CHECK(is_valid_utf8(expected));
  }
  CHECK_FALSE(is_valid_utf8("\xE6\x97"));
  CHECK(decode_utf8("\xF0\x9F\x99").truncated);
  CHECK_FALSE(decode_utf8("\xF0\x28").truncated);
}

TEST_CASE("Every code point survives encoding and decoding") {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    const Utf8Step step = decode_utf8(to_utf8(c));
    if (!step.valid || step.code_point != c) FAIL("code point " << static_cast<uint32_t>(c));
  }
}

TEST_CASE("White space is the Unicode property, not that of PCRE2") {
  CHECK(is_white_space(0x85));
  CHECK(is_white_space(0x3000));
  CHECK_FALSE(is_white_space(0x180E));
  CHECK_FALSE(is_white_space(0x200B));
  CHECK_FALSE(is_white_space(0x1C));
  CHECK(is_python_space(0x1C));
}

TEST_CASE("NFC composes, orders marks and leaves ASCII alone") {
  CHECK(normalize_nfc("plain") == "plain");
  CHECK(normalize_nfc("e\u0301") == "\u00E9");
  CHECK(normalize_nfc("\u1100\u1161\u11A8") == "\uAC01");
  CHECK(normalize_nfc("\u2126") == "\u03A9");        // a singleton
  CHECK(normalize_nfc("\u0958") == "\u0915\u093C");  // excluded from composition
  CHECK(normalize_nfc("q\u0307\u0323") == "q\u0323\u0307");
  // Unicode 12 gave U+0EBA class 9; Hugging Face's Unicode 9 leaves it where it is.
  CHECK(normalize_nfc("\u0E4A\u0EBA") == "\u0E4A\u0EBA");
}

TEST_CASE("NFC of a long run of marks takes no quadratic time") {
  // 10^6 marks of descending class: ordering them by insertion would take hours.
  std::string marks = "a";
  for (int i = 0; i < 500'000; ++i) marks += "\u0301";
  for (int i = 0; i < 500'000; ++i) marks += "\u0323";
  const std::string normalized = normalize_nfc(marks);
  CHECK(normalized.starts_with("\u1EA1\u0323"));
}

TEST_CASE("Case mapping follows Python") {
  CHECK(to_upper("straße é ǆ") == "STRASSE É Ǆ");
  CHECK(to_lower("ΑΣ ΣΑ İ") == "ας σα i\u0307");
  CHECK(to_title("they're bill's") == "They'Re Bill'S");
  CHECK(to_capitalized("hELLO wORLD") == "Hello world");
}

}  // namespace
}  // namespace shoal
