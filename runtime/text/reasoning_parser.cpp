#include "runtime/text/reasoning_parser.h"

#include <algorithm>

namespace shoal {
namespace {

constexpr std::string_view kOpen = "<think>";
constexpr std::string_view kClose = "</think>";
constexpr std::string_view kWhiteSpace = " \t\r\n";

// How many bytes at the end of `text` are a beginning of `tag`, short of the whole.
size_t partial_tag_length(std::string_view text, std::string_view tag) {
  for (size_t length = std::min(text.size(), tag.size() - 1); length > 0; --length) {
    if (text.substr(text.size() - length) == tag.substr(0, length)) return length;
  }
  return 0;
}

bool could_become(std::string_view text, std::string_view tag) {
  return text.size() < tag.size() && tag.starts_with(text);
}

}  // namespace

bool prompt_opens_reasoning(std::string_view prompt) {
  const size_t last = prompt.find_last_not_of(kWhiteSpace);
  return last != std::string_view::npos && prompt.substr(0, last + 1).ends_with(kOpen);
}

ReasoningParser::ReasoningParser(bool starts_in_reasoning)
    : state_(starts_in_reasoning ? State::kOpened : State::kStart),
      may_reopen_(starts_in_reasoning) {}

void ReasoningParser::skip_line_breaks() {
  held_.erase(0, std::min(held_.find_first_not_of("\r\n"), held_.size()));
}

bool ReasoningParser::advance(Delta* delta) {
  switch (state_) {
    case State::kStart: {
      const size_t text = std::min(held_.find_first_not_of(kWhiteSpace), held_.size());
      const std::string_view rest = std::string_view(held_).substr(text);
      if (rest.empty() || could_become(rest, kOpen)) return false;
      if (rest.starts_with(kOpen)) {
        held_.erase(0, text + kOpen.size());
        state_ = State::kOpened;
      } else {
        state_ = State::kContent;
      }
      return true;
    }
    case State::kOpened: {
      skip_line_breaks();
      if (held_.empty() || (may_reopen_ && could_become(held_, kOpen))) return false;
      if (may_reopen_ && held_.starts_with(kOpen)) {
        held_.erase(0, kOpen.size());
      } else {
        state_ = State::kReasoning;
      }
      may_reopen_ = false;
      return true;
    }
    case State::kReasoning: {
      size_t end = held_.find(kClose);
      const bool closed = end != std::string::npos;
      if (!closed) end = held_.size() - partial_tag_length(held_, kClose);
      // Line breaks before what is or may become the tag wait for it.
      size_t shown = end;
      while (shown > 0 && (held_[shown - 1] == '\n' || held_[shown - 1] == '\r')) --shown;
      delta->reasoning += held_.substr(0, shown);
      held_.erase(0, closed ? end + kClose.size() : shown);
      if (closed) state_ = State::kClosed;
      return closed;
    }
    case State::kClosed:
      skip_line_breaks();
      if (held_.empty()) return false;
      state_ = State::kContent;
      return true;
    case State::kContent:
      delta->content += held_;
      held_.clear();
      return false;
  }
  return false;
}

ReasoningParser::Delta ReasoningParser::push(std::string_view text) {
  held_ += text;
  Delta delta;
  while (advance(&delta)) {
  }
  return delta;
}

ReasoningParser::Delta ReasoningParser::flush() {
  Delta delta;
  (in_reasoning() ? delta.reasoning : delta.content) = std::move(held_);
  held_.clear();
  return delta;
}

}  // namespace shoal
