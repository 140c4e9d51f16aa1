// Records of calls as the front end makes them, for the tests of who watches.
#pragma once

#include "server/call_observer.h"

namespace shoal {

inline CallRecord::Time after(CallRecord::Time begin, double seconds) {
  return begin + std::chrono::duration_cast<CallRecord::Time::duration>(std::chrono::duration<double>(seconds));
}

// Arrived ten seconds ago; handed over after 0.1 s, queued 0.4 s, prompt until 1 s, 10 tokens until 1.9 s.
inline CallRecord finished_call(const std::string& id = "chat-1") {
  CallRecord call;
  call.id = id;
  call.method = "Chat";
  call.n = 1;
  call.max_tokens = 50;
  call.prompt_tokens = 12;
  call.cached_tokens = 4;
  call.completion_tokens = 10;
  call.finish_reasons = {"stop"};
  call.arrived = after(std::chrono::steady_clock::now(), -10);
  call.submitted = after(call.arrived, 0.1);
  call.queue_seconds = 0.4;
  call.first_token = after(call.arrived, 1.0);
  call.last_token = after(call.arrived, 1.9);
  call.ended = after(call.arrived, 2.0);
  return call;
}

inline CallRecord refused_call() {
  CallRecord call;
  call.method = "Complete";
  call.status = {CallCode::kResourceExhausted, "the queue\nis full", Refusal::kQueueFull};
  call.arrived = std::chrono::steady_clock::now();
  call.ended = call.arrived;
  return call;
}

}  // namespace shoal
