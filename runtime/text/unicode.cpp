#include "runtime/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {
namespace {

struct ByteRange {
  uint8_t low, high;
};

// What the second byte may be after a lead byte; the later ones are always 80..BF (Unicode table
// 3-7).
ByteRange second_byte_range(uint8_t lead) {
  switch (lead) {
    case 0xE0:
      return {0xA0, 0xBF};
    case 0xED:
      return {0x80, 0x9F};
    case 0xF0:
      return {0x90, 0xBF};
    case 0xF4:
      return {0x80, 0x8F};
    default:
      return {0x80, 0xBF};
  }
}

uint32_t sequence_length(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

utf8proc_category_t category(char32_t code_point) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

struct CodePointRange {
  char32_t first, last;
};

// Characters that Unicode 10 to 14 gave a combining class or a composition. Hugging Face tokenizers
// normalize by Unicode 9, which knows nothing of them, so they stand apart here too: the same text
// must give the same ids.
constexpr CodePointRange kInertToHuggingFace[] = {
    {0x07FD, 0x07FD},   {0x0898, 0x089F},   {0x08CA, 0x08D3},   {0x09FE, 0x09FE},
    {0x0C3C, 0x0C3C},   {0x0D3B, 0x0D3C},   {0x0EBA, 0x0EBA},   {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27},
    {0x10EAB, 0x10EAC}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070},
    {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11930},
    {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
    {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x16FF0, 0x16FF1}, {0x1E130, 0x1E136},
    {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF},
};

bool is_inert_to_hugging_face(char32_t c) {
  const auto* range =
      std::lower_bound(std::begin(kInertToHuggingFace), std::end(kInertToHuggingFace), c,
                       [](const CodePointRange& r, char32_t value) { return r.last < value; });
  return range != std::end(kInertToHuggingFace) && range->first <= c;
}

// Orders and composes decomposed code points, appends them and empties the segment.
// utf8proc_decompose() would order combining marks by insertion, which is quadratic in a run of
// marks and so a way to stall a server; a stable sort of each run is not.
void compose_segment(std::vector<utf8proc_int32_t>* segment, std::string* out) {
  const auto combining = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  for (auto it = segment->begin(); it != segment->end();) {
    if (combining(*it) == 0) {
      ++it;
      continue;
    }
    auto end = std::find_if(it, segment->end(), [&](auto c) { return combining(c) == 0; });
    std::stable_sort(it, end, [&](auto a, auto b) { return combining(a) < combining(b); });
    it = end;
  }
  const auto length =
      utf8proc_normalize_utf32(segment->data(), static_cast<utf8proc_ssize_t>(segment->size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  SHOAL_CHECK(length >= 0);
  for (utf8proc_ssize_t i = 0; i < length; ++i) {
    append_utf8(static_cast<char32_t>((*segment)[static_cast<size_t>(i)]), out);
  }
  segment->clear();
}

// Calls visit(code point, the text after it).
template <typename Visit>
void for_each_code_point(std::string_view text, const Visit& visit) {
  while (!text.empty()) {
    const Utf8Step step = decode_utf8(text);
    text.remove_prefix(step.length);
    visit(step.code_point, text);
  }
}

constexpr char32_t kSharpS = 0xDF;
constexpr char32_t kCapitalSigma = 0x3A3;
constexpr char32_t kFinalSigma = 0x3C2;
constexpr char32_t kDottedCapitalI = 0x130;

void append_upper(char32_t c, std::string* out) {
  if (c == kSharpS) {
    *out += "SS";
  } else {
    append_utf8(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))), out);
  }
}

void append_title(char32_t c, std::string* out) {
  if (c == kSharpS) {
    *out += "Ss";
  } else {
    append_utf8(static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))), out);
  }
}

void append_lower(char32_t c, char32_t previous, std::string_view rest, std::string* out) {
  if (c == kCapitalSigma && is_cased(previous) &&
      (rest.empty() || !is_cased(decode_utf8(rest).code_point))) {
    append_utf8(kFinalSigma, out);  // at the end of a word
  } else if (c == kDottedCapitalI) {
    *out += "i\xCC\x87";
  } else {
    append_utf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
  }
}

}  // namespace

Utf8Step decode_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  const uint32_t length = sequence_length(lead);
  if (length == 1) return {lead, 1, true, false};
  if (length == 0) return {};
  char32_t code_point = lead & (0x7Fu >> length);
  ByteRange range = second_byte_range(lead);
  for (uint32_t i = 1; i < length; ++i) {
    if (i == text.size()) return {kReplacementCharacter, i, false, true};
    if (byte(i) < range.low || byte(i) > range.high)
      return {kReplacementCharacter, i, false, false};
    code_point = (code_point << 6) | (byte(i) & 0x3F);
    range = {0x80, 0xBF};
  }
  return {code_point, length, true, false};
}

void append_utf8(char32_t code_point, std::string* out) {
  SHOAL_CHECK(code_point <= 0x10FFFF);
  utf8proc_uint8_t buffer[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), buffer);
  out->append(reinterpret_cast<const char*>(buffer), static_cast<size_t>(length));
}

std::string to_utf8(char32_t code_point) {
  std::string out;
  append_utf8(code_point, &out);
  return out;
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = decode_utf8(text);
    if (!step.valid) return false;
    text.remove_prefix(step.length);
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = decode_utf8(text);
    out.append(step.valid ? text.substr(0, step.length) : kReplacementUtf8);
    text.remove_prefix(step.length);
  }
  return out;
}

size_t count_code_points(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

bool is_numeric(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL ||
         kind == UTF8PROC_CATEGORY_NO;
}

bool is_decimal_digit(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }

bool is_word_character(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return c == 0x200C || c == 0x200D;  // Join_Control
  }
}

bool is_upper(char32_t c) {
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LT;
}

bool is_cased(char32_t c) { return is_upper(c) || category(c) == UTF8PROC_CATEGORY_LL; }

bool is_letter(char32_t c) {
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_printable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

std::string to_upper(std::string_view text) {
  std::string out;
  for_each_code_point(text, [&](char32_t c, std::string_view) { append_upper(c, &out); });
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  char32_t previous = 0;
  for_each_code_point(text, [&](char32_t c, std::string_view rest) {
    append_lower(c, previous, rest, &out);
    previous = c;
  });
  return out;
}

std::string to_title(std::string_view text) {
  std::string out;
  char32_t previous = 0;
  for_each_code_point(text, [&](char32_t c, std::string_view rest) {
    if (is_cased(previous)) {
      append_lower(c, previous, rest, &out);
    } else {
      append_title(c, &out);
    }
    previous = c;
  });
  return out;
}

std::string to_capitalized(std::string_view text) {
  std::string out;
  char32_t previous = 0;
  bool first = true;
  for_each_code_point(text, [&](char32_t c, std::string_view rest) {
    if (first) {
      append_title(c, &out);
    } else {
      append_lower(c, previous, rest, &out);
    }
    first = false;
    previous = c;
  });
  return out;
}

std::string normalize_nfc(std::string_view text) {
  if (is_ascii(text)) return std::string(text);
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> segment;
  while (!text.empty()) {
    const Utf8Step step = decode_utf8(text);
    text.remove_prefix(step.length);
    if (is_inert_to_hugging_face(step.code_point)) {
      compose_segment(&segment, &out);
      append_utf8(step.code_point, &out);
      continue;
    }
    utf8proc_int32_t decomposed[8];  // the longest canonical decomposition has 4 code points
    int last_bound_class = 0;
    const auto count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(step.code_point), decomposed, 8,
                                UTF8PROC_DECOMPOSE, &last_bound_class);
    SHOAL_CHECK(count >= 1 && count <= 8);
    segment.insert(segment.end(), decomposed, decomposed + count);
  }
  compose_segment(&segment, &out);
  return out;
}

}  // namespace shoal
