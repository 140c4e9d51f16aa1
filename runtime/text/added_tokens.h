// The added tokens of tokenizer.json: strings such as <|im_end|> that are found in the text before
// anything else is done with it. Immutable after construction, thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace shoal {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;
  bool single_word = false;  // not inside a word
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool normalized = false;   // looked for in the normalized text, not in the text as given
};

// The "added_tokens" member; null gives none. Throws InvalidInput.
std::vector<AddedToken> parse_added_tokens(const nlohmann::json& json);

// One stretch of text: an added token, or the text between two of them (id -1).
struct AddedTokenSplit {
  std::string_view text;
  int32_t id = -1;
};

// Finds a set of strings, leftmost first, the longest of those that start at the same place.
class AddedTokenMatcher {
 public:
  // `pattern` is what to look for, which differs from `token.content` when that was normalized.
  void add(std::string pattern, const AddedToken& token);
  // Call once, after the last add() and before split().
  void prepare();

  // Appends the stretches of valid UTF-8 `text`, in order; they refer into it. With
  // `parse_special` false, special tokens are taken for ordinary text (but still hide an added
  // token that overlaps them, as in Hugging Face tokenizers).
  void split(std::string_view text, bool parse_special, std::vector<AddedTokenSplit>* out) const;

 private:
  struct Pattern {
    std::string text;
    AddedToken token;
  };
  const Pattern* longest_at(std::string_view text, size_t position) const;

  std::vector<Pattern> patterns_;     // sorted by text once prepared
  std::vector<uint32_t> first_byte_;  // [257]: where the patterns that start with a byte begin
};

}  // namespace shoal
