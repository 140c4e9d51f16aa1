// From the tokens of one sample to what its client sees: text in whole characters, reasoning apart
// from content, stop strings, log probabilities, counts. One per sample; not thread-safe. The
// tokenizer must outlive it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/request/request.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/reasoning_parser.h"
#include "runtime/text/stop_matcher.h"
#include "runtime/text/tokenizer.h"
#include "server/request_validation.h"

namespace shoal {

// What came since the last delta of the same sample; append() adds up.
struct OutputDelta {
  int32_t index = 0;
  std::string content, reasoning;
  std::vector<int32_t> token_ids;
  std::vector<std::pair<int32_t, TokenLogprobs>> logprobs;
  FinishReason finish_reason = FinishReason::kNone;  // kNone, kStop or kLength
  std::optional<std::string> stop_string;
  std::optional<int32_t> stop_token_id;

  bool empty() const;
  size_t bytes() const;  // about what it takes in memory and on the wire
};

// How the text of a call is to be read.
struct OutputFormat {
  bool split_reasoning = false;      // Chat; Complete keeps the text as it is
  bool starts_in_reasoning = false;  // the prompt ends with an opened <think>
};

class SequenceOutput {
 public:
  SequenceOutput(const Tokenizer& tokenizer, const CallSampling& sampling, OutputFormat format);

  // Takes one event, without error, of a sample that is not finished; adds what it gives to
  // `delta`.
  void push(const TokenEvent& event, OutputDelta* delta);
  // After a stop string the engine does not know yet that the sample ended: it must be cancelled.
  bool finished() const { return finished_; }
  int32_t completion_tokens() const { return completion_tokens_; }
  int32_t reasoning_tokens() const { return reasoning_tokens_; }

 private:
  void add_token(int32_t id, bool is_text, OutputDelta* delta);
  void add_text(std::string text, OutputDelta* delta);     // through the stop matcher
  void show(const std::string& text, OutputDelta* delta);  // through the reasoning parser
  void finish(FinishReason reason, OutputDelta* delta);

  Detokenizer detokenizer_;
  StopMatcher stop_matcher_;
  std::optional<ReasoningParser> reasoning_;
  const std::vector<std::string> stop_;
  const bool include_stop_;
  const int32_t min_tokens_;
  int32_t completion_tokens_ = 0, reasoning_tokens_ = 0;
  bool finished_ = false;
};

}  // namespace shoal
