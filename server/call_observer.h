// What is told of every call of Chat and Complete: metrics, traces and the request log live on it.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "server/call_context.h"
#include "server/call_status.h"

namespace shoal {

// One call, complete when it has ended. Times of std::chrono::steady_clock; absent: never came to it.
struct CallRecord {
  using Time = std::chrono::steady_clock::time_point;
  std::string id;       // the server's: "chat-1a2b"
  const char* method = "";  // "Chat", "Complete"
  CallContext context;
  int32_t n = 1, max_tokens = 0;
  int32_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  std::vector<const char*> finish_reasons;  // of the samples that finished: "stop", "length"
  CallStatus status;
  Time arrived{};
  std::optional<Time> submitted;    // handed to the engine
  std::optional<Time> first_token, last_token;
  std::optional<Time> ended;
  // Of sample 0, as the engine says with its first token: from its submission to the first step with it.
  double queue_seconds = 0;
  std::string prompt;  // its text, only with --log-prompts
};

// Thread-safe; must not block for long. Called without locks held. Of the record only what was known
// when the call was handed to the engine may be read before on_end().
class CallObserver {
 public:
  virtual ~CallObserver() = default;
  // `tokens` tokens of a sample came `seconds` after the ones before them; not called for its first.
  virtual void on_tokens(const CallRecord& call, int32_t tokens, double seconds) = 0;
  // Also for calls that never began (refused): then only arrived, status and ended are there.
  virtual void on_end(const CallRecord& call) = 0;
};

}  // namespace shoal
