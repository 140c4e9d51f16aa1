#include "runtime/text/added_tokens.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/text/json_input.h"
#include "runtime/text/unicode.h"

namespace shoal {
namespace {

// The start of the last character of `text`, which must not be empty.
size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool ends_with_word(std::string_view text) {
  return !text.empty() &&
         is_word_character(decode_utf8(text.substr(last_character(text))).code_point);
}

bool starts_with_word(std::string_view text) {
  return !text.empty() && is_word_character(decode_utf8(text).code_point);
}

// Where the white space at the end of text[0, end) begins, not before `floor`.
size_t skip_space_back(std::string_view text, size_t floor, size_t end) {
  while (end > floor) {
    const size_t at = last_character(text.substr(0, end));
    if (!is_white_space(decode_utf8(text.substr(at)).code_point)) break;
    end = at;
  }
  return std::max(end, floor);
}

size_t skip_space(std::string_view text, size_t position) {
  while (position < text.size()) {
    const Utf8Step step = decode_utf8(text.substr(position));
    if (!is_white_space(step.code_point)) break;
    position += step.length;
  }
  return position;
}

}  // namespace

std::vector<AddedToken> parse_added_tokens(const nlohmann::json& json) {
  std::vector<AddedToken> tokens;
  if (json.is_null()) return tokens;
  if (!json.is_array()) throw_invalid("added_tokens is {}, should be an array", json.type_name());
  tokens.reserve(json.size());
  for (size_t i = 0; i < json.size(); ++i) {
    const JsonObject object(json[i], fmt::format("added_tokens[{}]", i));
    AddedToken token;
    token.content = object.require_string("content");
    token.id = require_token_id(object.require("id"), object.path("id"));
    token.special = object.find_bool("special", false);
    token.single_word = object.find_bool("single_word", false);
    token.lstrip = object.find_bool("lstrip", false);
    token.rstrip = object.find_bool("rstrip", false);
    token.normalized = object.find_bool("normalized", !token.special);
    if (token.content.empty()) throw_invalid("{} is empty", object.path("content"));
    tokens.push_back(std::move(token));
  }
  return tokens;
}

void AddedTokenMatcher::add(std::string pattern, const AddedToken& token) {
  if (!pattern.empty()) patterns_.push_back({std::move(pattern), token});
}

void AddedTokenMatcher::prepare() {
  std::stable_sort(patterns_.begin(), patterns_.end(),
                   [](const Pattern& a, const Pattern& b) { return a.text < b.text; });
  first_byte_.assign(257, 0);
  for (const Pattern& pattern : patterns_) {
    ++first_byte_[static_cast<uint8_t>(pattern.text[0]) + size_t{1}];
  }
  for (size_t byte = 1; byte < first_byte_.size(); ++byte)
    first_byte_[byte] += first_byte_[byte - 1];
}

const AddedTokenMatcher::Pattern* AddedTokenMatcher::longest_at(std::string_view text,
                                                                size_t position) const {
  const auto first = static_cast<uint8_t>(text[position]);
  auto low = patterns_.begin() + first_byte_[first];
  auto high = patterns_.begin() + first_byte_[first + size_t{1}];
  const Pattern* longest = nullptr;
  // [low, high) are the patterns that agree with the text in their first `length` bytes. Sorted,
  // one that ends there is the first of them.
  for (size_t length = 1; low != high; ++length) {
    if (low->text.size() == length) {
      longest = &*low;
      while (low != high && low->text.size() == length) ++low;
    }
    if (position + length >= text.size()) break;
    const auto next = static_cast<uint8_t>(text[position + length]);
    low = std::partition_point(low, high, [&](const Pattern& pattern) {
      return static_cast<uint8_t>(pattern.text[length]) < next;
    });
    high = std::partition_point(low, high, [&](const Pattern& pattern) {
      return static_cast<uint8_t>(pattern.text[length]) == next;
    });
  }
  return longest;
}

void AddedTokenMatcher::split(std::string_view text, bool parse_special,
                              std::vector<AddedTokenSplit>* out) const {
  size_t open = 0;  // start of the text that is not yet in `out`
  size_t position = 0;
  while (!patterns_.empty() && position < text.size()) {
    const auto first = static_cast<uint8_t>(text[position]);
    if (first_byte_[first] == first_byte_[first + size_t{1}]) {
      ++position;
      continue;
    }
    const Pattern* pattern = longest_at(text, position);
    if (pattern == nullptr) {
      ++position;
      continue;
    }
    size_t begin = position;
    size_t end = begin + pattern->text.size();
    position = end;
    const AddedToken& token = pattern->token;
    if (token.special && !parse_special) continue;
    if (token.single_word &&
        (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) {
      continue;
    }
    if (token.lstrip) begin = std::min(begin, skip_space_back(text, open, begin));
    if (token.rstrip) end = skip_space(text, end);
    if (open < begin) out->push_back({text.substr(open, begin - open), -1});
    out->push_back({text.substr(begin, end - begin), token.id});
    open = end;
  }
  if (open < text.size()) out->push_back({text.substr(open), -1});
}

}  // namespace shoal
