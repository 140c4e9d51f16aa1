// The regular expressions of tokenizer.json, run by PCRE2 with the meaning that Oniguruma (which
// Hugging Face tokenizers use) gives them: \s \w \d by Unicode property, ^ and $ at every line.
// A construct whose meaning differs between the two engines is refused by name.
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace shoal {

struct RegexMatch {
  size_t begin = 0;
  size_t end = 0;
};

// The working memory of one search; one per thread.
class RegexScratch {
 public:
  RegexScratch();

 private:
  friend class Regex;
  struct Free {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  };
  std::unique_ptr<pcre2_match_data, Free> match_data_;
  std::unique_ptr<pcre2_match_context, Free> limits_;
};

// Immutable after construction; search from any number of threads, each with its own scratch.
class Regex {
 public:
  // Throws InvalidInput, naming `where`, for a pattern that is malformed or not supported.
  Regex(std::string_view pattern, std::string_view where);

  // The first match at or after `start`. `subject` must be valid UTF-8, `start` on a character
  // boundary. Throws InvalidInput when the text needs more backtracking than the limits allow.
  bool find(std::string_view subject, size_t start, RegexScratch* scratch, RegexMatch* match) const;

 private:
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  std::unique_ptr<pcre2_code, Free> code_;
  bool jit_ = false;
};

}  // namespace shoal
