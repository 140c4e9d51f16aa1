#include "server/call_status.h"

namespace shoal {

const char* refusal_name(const CallStatus& status) {
  switch (status.refusal) {
    case Refusal::kQueueFull: return "queue_full";
    case Refusal::kClientSequences: return "client_sequences";
    case Refusal::kClientRate: return "client_rate";
    case Refusal::kDeadline: return "deadline";
    case Refusal::kLoading: return "loading";
    case Refusal::kNone: break;
  }
  switch (status.code) {
    case CallCode::kOk: return "ok";
    case CallCode::kCancelled: return "cancelled";
    case CallCode::kInvalidArgument: return "invalid_argument";
    case CallCode::kDeadlineExceeded: return "deadline";
    case CallCode::kNotFound: return "not_found";
    case CallCode::kResourceExhausted: return "resource_exhausted";
    case CallCode::kInternal: return "internal";
    case CallCode::kUnavailable: return "unavailable";
    case CallCode::kUnauthenticated: return "unauthenticated";
  }
  return "unknown";
}

}  // namespace shoal
