// What filters and methods of strings share. Text is valid UTF-8 throughout.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/jinja/interpreter.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

enum class StripSide { kLeft, kRight, kBoth };
// Python's str.strip(chars); without `chars`, white space.
std::string strip(std::string_view text, const std::string* chars, StripSide side);

// Python's str.replace(old, new, count); a negative count means all.
std::string replace(Interpreter& interpreter, std::string_view text, std::string_view old_text,
                    std::string_view new_text, int64_t count);

// Charges for finding `needle` in `text`, which takes up to the product of their lengths.
void charge_search(Interpreter& interpreter, std::string_view text, std::string_view needle);

// Python's str.splitlines().
std::vector<std::string_view> split_lines(std::string_view text);

// What int(text, base) and float(text) accept; nothing for anything else.
std::optional<int64_t> parse_integer(std::string_view text, int base);
std::optional<double> parse_float(std::string_view text);

// dict.items() as a list of pairs.
Value dict_items(const Value& dict);

}  // namespace shoal::jinja
