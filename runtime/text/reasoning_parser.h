// Splits streamed text into the reasoning inside <think>…</think> and the content after it.
//
// Decisions, for models of the DeepSeek-R1 and Qwen 3 kind:
//  - A prompt that ends with an opened <think> (prompt_opens_reasoning) makes the text start as
//    reasoning; a <think> that the model then writes once more is dropped.
//  - Otherwise reasoning is recognised only at the start of the text, after white space at most; a
//    <think> further on is content.
//  - Line breaks right after <think>, right before </think> and right after </think> belong to the
//  tags
//    and are dropped, as DeepSeek's own service does (vLLM's deepseek_r1 parser keeps them).
//    That is also what the chat templates put there, so a conversation survives a round trip.
//  - Without </think> everything is reasoning. After </think> everything is content, tags included.
// The result does not depend on how the text was cut into deltas. One per sequence; not
// thread-safe.
#pragma once

#include <string>
#include <string_view>

namespace shoal {

// Whether a rendered prompt ends inside an opened <think>, so that the answer starts as reasoning.
bool prompt_opens_reasoning(std::string_view prompt);

class ReasoningParser {
 public:
  struct Delta {
    std::string reasoning;
    std::string content;
  };

  explicit ReasoningParser(bool starts_in_reasoning);

  Delta push(std::string_view text);
  // The end: what was held back because it could have been (part of) a tag.
  Delta flush();
  // Whether the text so far ends inside the reasoning.
  bool in_reasoning() const { return state_ == State::kReasoning || state_ == State::kOpened; }

 private:
  enum class State {
    kStart,   // nothing but white space so far
    kOpened,  // inside, no reasoning yet: line breaks are dropped
    kReasoning,
    kClosed,  // after </think>, no content yet: line breaks are dropped
    kContent,
  };
  // Handles as much of held_ as is certain; false when it needs more text.
  bool advance(Delta* delta);
  void skip_line_breaks();

  State state_;
  bool may_reopen_;   // a second <think> right at the start is dropped
  std::string held_;  // not yet given out
};

}  // namespace shoal
