// Who calls, and what came with the call beside its message: made by the gRPC services from metadata
// and certificate (server/security), read by admission, metrics, logs and traces. Plain data.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace shoal {

// The holder of an API key. Without keys everybody is the same anonymous client.
struct Client {
  std::string name;     // for logs and metrics, from the key file; "" without keys
  uint64_t id = 0;      // clients take turns by it (Request::client)
  std::string cache_salt;  // Request::cache_salt; "" without keys
  // Limits of this client, beside those of the server; 0: none of its own.
  int64_t max_sequences = 0;        // alive at once
  double requests_per_second = 0;   // calls of Chat and Complete, sustained
  double burst = 0;                 // calls that may come at once; 0: one second's worth, at least 1
  // A request that asks for a better (lower) priority than this gets this one.
  int32_t best_priority = -100;
};

struct CallContext {
  std::shared_ptr<const Client> client = std::make_shared<Client>();  // never null
  std::string request_id;   // `x-request-id` of the caller, at most 128 printable bytes; "" if none
  std::string traceparent;  // W3C trace context as it came, valid; "" if none
  std::optional<std::chrono::system_clock::time_point> deadline;
  std::chrono::steady_clock::time_point arrived = std::chrono::steady_clock::now();
};

}  // namespace shoal
