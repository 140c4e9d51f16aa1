#include "server/admission/error_details.h"

#include <algorithm>
#include <cctype>

#include "google/rpc/error_details.pb.h"

namespace shoal {

std::string error_details(const CallStatus& status) {
  if (status.refusal == Refusal::kNone && !status.retry_after) return "";
  google::rpc::Status details;
  details.set_code(static_cast<int>(status.code));
  details.set_message(status.message);
  if (status.retry_after) {
    google::rpc::RetryInfo retry;
    const int64_t ms = status.retry_after->count();
    retry.mutable_retry_delay()->set_seconds(ms / 1000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(ms % 1000) * 1'000'000);
    details.add_details()->PackFrom(retry);
  }
  if (status.refusal != Refusal::kNone) {
    google::rpc::ErrorInfo info;
    std::string reason = refusal_name(status);
    std::ranges::transform(reason, reason.begin(),
                           [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    info.set_reason(reason);
    info.set_domain("shoal");
    details.add_details()->PackFrom(info);
  }
  return details.SerializeAsString();
}

}  // namespace shoal
