// How a call ends when not by its own success. The values are those of gRPC's status codes, so that
// the front end needs no gRPC header.
#pragma once

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

struct CallStatus {
  CallCode code = CallCode::kOk;
  std::string message;
};

// A call that is refused before it began for a reason other than its fields (those are
// InvalidInput).
class CallRefused : public std::runtime_error {
 public:
  CallRefused(CallCode code, const std::string& message)
      : std::runtime_error(message), code_(code) {}
  CallCode code() const { return code_; }

 private:
  CallCode code_;
};

}  // namespace shoal
