// The pre_tokenizer of tokenizer.json: cuts text into the pieces inside which BPE may merge.
// Supported: Sequence, Split, Digits, ByteLevel. Immutable after construction, thread-safe.
#pragma once

#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/regex.h"

namespace shoal {

// Working memory: reuse it for the texts of one call, one per thread.
class PreTokenizerScratch {
  friend class PreTokenizer;
  std::vector<std::string_view> pieces_;
  std::vector<std::string_view> next_;
  std::deque<std::string> prefixed_;  // pieces that a prefix space was put before
  RegexScratch regex_;
};

class PreTokenizer {
 public:
  // `json` may be null: one piece. Throws InvalidInput for what is malformed or not supported.
  explicit PreTokenizer(const nlohmann::json& json);

  // Whether BPE works on bytes (a ByteLevel step is present) or on characters.
  bool byte_level() const { return byte_level_; }

  // The pieces of valid UTF-8, never empty ones. The list lives until the next call with this
  // scratch; what its views refer to, `text` and `scratch`, is not changed by later calls.
  const std::vector<std::string_view>& split(std::string_view text,
                                             PreTokenizerScratch* scratch) const;

 private:
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  struct Step {
    std::shared_ptr<const Regex> regex;  // null: digits when `digits`, else a string to look for
    std::string literal;
    bool digits = false;
    bool prefix_space = false;  // put a space before pieces that have none, then split
    bool splits = true;
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
  };

  void add_steps(const nlohmann::json& json, const std::string& where, int depth);
  void add_split(const nlohmann::json& json, const std::string& where);
  static bool find_next(const Step& step, std::string_view text, size_t start,
                        RegexScratch* scratch, RegexMatch* match);
  static void run_step(const Step& step, std::string_view piece, PreTokenizerScratch* scratch);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace shoal
