// UTF-8 and the few Unicode properties that tokenizers and chat templates need.
// Everything here is pure and thread-safe, takes any bytes, and never reads past its input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace shoal {

inline constexpr char32_t kReplacementCharacter = 0xFFFD;
inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";

// One step of decoding. An invalid step covers the maximal subpart of an ill-formed sequence
// (Unicode 3.9, what Python's errors="replace" and Rust's from_utf8_lossy replace by one U+FFFD).
struct Utf8Step {
  char32_t code_point = kReplacementCharacter;
  uint32_t length = 1;  // bytes consumed, at least 1
  bool valid = false;
  bool truncated = false;  // the text ended inside a sequence that more bytes could complete
};

// `text` must not be empty.
Utf8Step decode_utf8(std::string_view text);

void append_utf8(char32_t code_point, std::string* out);
std::string to_utf8(char32_t code_point);

bool is_valid_utf8(std::string_view text);
// Every maximal invalid subpart becomes one U+FFFD.
std::string replace_invalid_utf8(std::string_view text);
// Number of code points of valid UTF-8.
size_t count_code_points(std::string_view text);

// The White_Space property: what \s of the Hugging Face tokenizers and Python's str.strip() mean,
// except that Python also strips U+001C to U+001F.
bool is_white_space(char32_t code_point);
bool is_python_space(char32_t code_point);
// General categories N* (Rust's char::is_numeric).
bool is_numeric(char32_t code_point);
// General category Nd.
bool is_decimal_digit(char32_t code_point);
// \w: letters, marks, digits and connector punctuation.
bool is_word_character(char32_t code_point);
// Letters that have a case.
bool is_cased(char32_t code_point);
bool is_upper(char32_t code_point);
bool is_letter(char32_t code_point);
// Python's str.isprintable() for one character.
bool is_printable(char32_t code_point);

// Python's str.upper(), lower() and title() of valid UTF-8, but for most characters whose other
// case is more than one character (of those, only the German sharp s is known).
std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string to_title(std::string_view text);
// Python's str.capitalize().
std::string to_capitalized(std::string_view text);

// Normalization form C of valid UTF-8 as Hugging Face tokenizers know it, which is by Unicode 9.
// Linearithmic in the length, whatever the combining marks.
std::string normalize_nfc(std::string_view text);

}  // namespace shoal
