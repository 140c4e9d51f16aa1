// RequestLog: one line for each call of Chat and Complete, when it has ended or was refused. Never holds
// the prompt, unless the record does (--log-prompts).
#pragma once

#include <string>

#include "server/call_observer.h"
#include "server/logging/log_format.h"

namespace shoal {

class RequestLog final : public CallObserver {
 public:
  void on_tokens(const CallRecord&, int32_t, double) override {}
  void on_end(const CallRecord& call) override;
};

// What it says, and the same as fields.
std::string request_line(const CallRecord& call);
LogFields::Fields request_fields(const CallRecord& call);

}  // namespace shoal
