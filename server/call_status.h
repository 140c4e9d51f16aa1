// How a call ends when not by its own success. The values are those of gRPC's status codes, so that
// the front end needs no gRPC header.
#pragma once

#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>

namespace shoal {

enum class CallCode {
  kOk = 0,
  kCancelled = 1,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kResourceExhausted = 8,
  kInternal = 13,
  kUnavailable = 14,
  kUnauthenticated = 16,
};

// Why a call was refused, where the code alone does not say.
enum class Refusal { kNone, kQueueFull, kClientSequences, kClientRate, kDeadline, kLoading };

struct CallStatus {
  CallCode code = CallCode::kOk;
  std::string message;
  Refusal refusal = Refusal::kNone;
  std::optional<std::chrono::milliseconds> retry_after;  // when to try again, where that may help
};

// What a call that never began is counted under: "queue_full", "invalid_argument", ..
const char* refusal_name(const CallStatus& status);

// A call that is refused before it began for a reason other than its fields (those are
// InvalidInput).
class CallRefused : public std::runtime_error {
 public:
  CallRefused(CallCode code, const std::string& message, Refusal refusal = Refusal::kNone,
              std::optional<std::chrono::milliseconds> retry_after = {})
      : std::runtime_error(message), code_(code), refusal_(refusal), retry_after_(retry_after) {}
  CallCode code() const { return code_; }
  CallStatus status() const { return {code_, what(), refusal_, retry_after_}; }

 private:
  CallCode code_;
  Refusal refusal_;
  std::optional<std::chrono::milliseconds> retry_after_;
};

}  // namespace shoal
