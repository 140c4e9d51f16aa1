#include "server/sequence_output.h"

#include "kernels/base/error.h"

namespace shoal {

bool OutputDelta::empty() const {
  return content.empty() && reasoning.empty() && token_ids.empty() && logprobs.empty() &&
         finish_reason == FinishReason::kNone;
}

size_t OutputDelta::bytes() const {
  // Deltas are merged before they are sent: only what adds up counts.
  size_t total = content.size() + reasoning.size() + token_ids.size() * sizeof(int32_t);
  for (const auto& [id, logprobs] : logprobs) {
    total += sizeof(logprobs) + logprobs.top.size() * sizeof(logprobs.top[0]);
  }
  return total;
}

SequenceOutput::SequenceOutput(const Tokenizer& tokenizer, const CallSampling& sampling,
                               OutputFormat format)
    : detokenizer_(tokenizer, sampling.skip_special_tokens),
      stop_matcher_(sampling.stop, sampling.include_stop),
      stop_(sampling.stop),
      include_stop_(sampling.include_stop),
      min_tokens_(sampling.params.min_tokens) {
  if (format.split_reasoning) reasoning_.emplace(format.starts_in_reasoning);
}

void SequenceOutput::push(const TokenEvent& event, OutputDelta* delta) {
  SHOAL_CHECK(!finished_);
  if (event.token) {
    if (event.logprobs) delta->logprobs.emplace_back(*event.token, *event.logprobs);
    add_token(*event.token, !event.matched_stop_token || include_stop_, delta);
  }
  if (finished_) return;  // by a stop string
  if (event.finish_reason != FinishReason::kNone) {
    delta->stop_token_id = event.matched_stop_token;
    finish(event.finish_reason, delta);
  }
}

void SequenceOutput::add_token(int32_t id, bool is_text, OutputDelta* delta) {
  ++completion_tokens_;
  delta->token_ids.push_back(id);
  const bool was_reasoning = reasoning_ && reasoning_->in_reasoning();
  if (is_text) add_text(detokenizer_.push(id), delta);
  if (was_reasoning || (reasoning_ && reasoning_->in_reasoning())) ++reasoning_tokens_;
}

void SequenceOutput::add_text(std::string text, OutputDelta* delta) {
  if (completion_tokens_ <= min_tokens_) {  // too early to stop: not looked at by the matcher
    show(text, delta);
    return;
  }
  const StopMatcher::Result result = stop_matcher_.push(text);
  show(result.text, delta);
  if (result.stop_index) {
    delta->stop_string = stop_[*result.stop_index];
    finish(FinishReason::kStop, delta);
  }
}

void SequenceOutput::show(const std::string& text, OutputDelta* delta) {
  if (!reasoning_) {
    delta->content += text;
    return;
  }
  const ReasoningParser::Delta parts = reasoning_->push(text);
  delta->reasoning += parts.reasoning;
  delta->content += parts.content;
}

void SequenceOutput::finish(FinishReason reason, OutputDelta* delta) {
  finished_ = true;
  if (!stop_matcher_.stopped()) {
    // Half a character that is left becomes U+FFFD, which may yet complete a stop string.
    const StopMatcher::Result rest = stop_matcher_.push(detokenizer_.flush());
    show(rest.text, delta);
    if (rest.stop_index) {
      delta->stop_string = stop_[*rest.stop_index];
      reason = FinishReason::kStop;
    } else {
      show(stop_matcher_.flush(), delta);
    }
  }
  if (reasoning_) {
    const ReasoningParser::Delta rest = reasoning_->flush();
    delta->reasoning += rest.reasoning;
    delta->content += rest.content;
  }
  delta->finish_reason = reason;
}

}  // namespace shoal
