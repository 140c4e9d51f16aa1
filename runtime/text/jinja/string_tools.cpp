#include "runtime/text/jinja/string_tools.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "kernels/base/error.h"
#include "runtime/text/unicode.h"

namespace shoal::jinja {
namespace {

bool is_line_break(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

// Without white space around it and without single underscores between digits.
std::optional<std::string> clean_number(std::string_view text) {
  const std::string stripped = strip(text, nullptr, StripSide::kBoth);
  std::string out;
  for (size_t i = 0; i < stripped.size(); ++i) {
    if (stripped[i] != '_') {
      out += stripped[i];
      continue;
    }
    const bool between = i > 0 && i + 1 < stripped.size() && std::isalnum(stripped[i - 1]) != 0 &&
                         std::isalnum(stripped[i + 1]) != 0;
    if (!between) return std::nullopt;
  }
  return out;
}

}  // namespace

std::string strip(std::string_view text, const std::string* chars, StripSide side) {
  const auto strips = [&](std::string_view character) {
    // UTF-8 of whole characters: one is found only where it stands.
    return chars == nullptr ? is_python_space(decode_utf8(character).code_point)
                            : chars->find(character) != std::string::npos;
  };
  if (side != StripSide::kRight) {
    while (!text.empty()) {
      const size_t length = decode_utf8(text).length;
      if (!strips(text.substr(0, length))) break;
      text.remove_prefix(length);
    }
  }
  if (side != StripSide::kLeft) {
    while (!text.empty()) {
      const size_t at = last_character(text);
      if (!strips(text.substr(at))) break;
      text = text.substr(0, at);
    }
  }
  return std::string(text);
}

void charge_search(Interpreter& interpreter, std::string_view text, std::string_view needle) {
  interpreter.charge((1 + text.size() / 32) * (1 + needle.size() / 64));
}

std::string replace(Interpreter& interpreter, std::string_view text, std::string_view old_text,
                    std::string_view new_text, int64_t count) {
  charge_search(interpreter, text, old_text);
  Writer out;
  const auto more = [&] { return count < 0 || count-- > 0; };
  if (old_text.empty()) {
    // Python puts the new text before each character and at the end.
    while (!text.empty()) {
      if (!more()) break;
      out.append(new_text);
      const size_t length = decode_utf8(text).length;
      out.append(text.substr(0, length));
      text.remove_prefix(length);
    }
    if (text.empty() && more()) out.append(new_text);
    out.append(text);
    return out.take();
  }
  size_t at = 0;
  while ((at = text.find(old_text)) != std::string_view::npos && more()) {
    out.append(text.substr(0, at));
    out.append(new_text);
    text.remove_prefix(at + old_text.size());
  }
  out.append(text);
  return out.take();
}

std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = decode_utf8(text.substr(at));
    if (!is_line_break(step.code_point)) {
      at += step.length;
      continue;
    }
    lines.push_back(text.substr(begin, at - begin));
    at += step.length;
    if (step.code_point == '\r' && at < text.size() && text[at] == '\n') ++at;
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::optional<int64_t> parse_integer(std::string_view text, int base) {
  const auto number = clean_number(text);
  if (!number) return std::nullopt;
  std::string_view digits = *number;
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.remove_prefix(1);
  const char mark = base == 16 ? 'x' : base == 8 ? 'o' : base == 2 ? 'b' : '\0';
  if (mark != '\0' && digits.size() > 2 && digits[0] == '0' && (digits[1] | 0x20) == mark) {
    digits.remove_prefix(2);
  }
  uint64_t magnitude = 0;
  const auto parsed =
      std::from_chars(digits.data(), digits.data() + digits.size(), magnitude, base);
  if (parsed.ec == std::errc::result_out_of_range ||
      (parsed.ec == std::errc() &&
       magnitude > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))) {
    throw_invalid("an integer does not fit 64 bits");
  }
  if (parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size()) return std::nullopt;
  const auto value = static_cast<int64_t>(magnitude);
  return negative ? -value : value;
}

std::optional<double> parse_float(std::string_view text) {
  const auto number = clean_number(text);
  if (!number) return std::nullopt;
  std::string_view digits = *number;
  if (digits.starts_with('+')) digits.remove_prefix(1);
  if (digits.starts_with('+')) return std::nullopt;
  double value = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (parsed.ptr != digits.data() + digits.size() || digits.empty()) return std::nullopt;
  if (parsed.ec == std::errc::result_out_of_range) {
    return digits.starts_with('-') ? -HUGE_VAL : HUGE_VAL;
  }
  if (parsed.ec != std::errc()) return std::nullopt;
  return value;
}

Value dict_items(const Value& dict) {
  Values items;
  items.reserve(dict.mapping().items.size());
  for (const auto& [key, value] : dict.mapping().items) items.push_back(Value::tuple({key, value}));
  return Value::list(std::move(items));
}

}  // namespace shoal::jinja
