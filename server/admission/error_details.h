// The details of a refused call's status for clients that look closer than its code: google.rpc.Status with
// RetryInfo (when to try again) and ErrorInfo (why: QUEUE_FULL, CLIENT_RATE, ..).
#pragma once

#include <string>

#include "server/call_status.h"

namespace shoal {

// The value of `grpc-status-details-bin`; empty when there is nothing to add to code and message.
std::string error_details(const CallStatus& status);

}  // namespace shoal
