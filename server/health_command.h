// `shoal health`: asks a running server whether it serves, for container and cluster probes that speak no gRPC
// or have no key and no certificate.
#pragma once

#include <string>

#include "server/client_channel.h"

namespace shoal {

struct HealthOptions {
  ServerAddress address;
  std::string service;  // --service; "": the server as a whole
  double timeout = 5;   // --timeout: seconds
};

// Prints the answer. Returns 0 for SERVING, 1 for any other answer and for none.
int run_health(const HealthOptions& options);

}  // namespace shoal
