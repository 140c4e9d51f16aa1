// Guard: the one place that decides who may call what. Default: nobody, unless a key, or a client
// certificate where no keys are set, says who calls. Knows no gRPC. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/call_context.h"
#include "server/security/api_keys.h"

namespace shoal {

struct GuardOptions {
  std::string api_key;       // --api-key
  std::string api_key_file;  // --api-key-file
  bool open_health = false;  // --open-health: grpc.health.v1 answers everybody
};

// What a call shows of who makes it. Views of the call.
struct Credentials {
  std::vector<std::string_view> authorization;  // values of that header
  std::string certificate;                      // name in the client's certificate, verified; "" if none
  std::string peer;                             // address, for the log
};

class Guard {
 public:
  explicit Guard(const GuardOptions& options);  // throws InvalidInput

  // Whether everybody who reaches the port may call.
  bool open() const { return !keys_.required(); }
  // `method`: "/shoal.v1.Inference/Chat". Throws CallRefused(kUnauthenticated).
  std::shared_ptr<const Client> admit(std::string_view method, const Credentials& credentials);

  void reload_if_changed() { keys_.reload_if_changed(); }
  void reload() { keys_.reload(); }

 private:
  void log_refusal(std::string_view method, const Credentials& credentials, const std::string& why);

  ApiKeys keys_;
  const bool open_health_;
  std::mutex mutex_;  // of what follows
  std::chrono::steady_clock::time_point last_log_{};
  int64_t unlogged_ = 0;
};

}  // namespace shoal
