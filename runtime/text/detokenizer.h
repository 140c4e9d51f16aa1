// Ids to text, one id at a time. A delta is whole characters only; all deltas and the flush,
// joined, are exactly what Tokenizer::decode gives for all ids at once. One per sequence; not
// thread-safe. The tokenizer must outlive it.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/text/tokenizer.h"

namespace shoal {

class Detokenizer {
 public:
  Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens);

  // The text that is certain now that `id` has come; may be empty.
  std::string push(int32_t id);
  // The end: what is left is not a character, and becomes U+FFFD. Then it starts afresh.
  std::string flush();
  // Bytes that wait for the rest of their character; at most 3.
  size_t pending_bytes() const { return pending_.size(); }

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;
};

}  // namespace shoal
