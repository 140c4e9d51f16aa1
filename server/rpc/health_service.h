// grpc.health.v1: the state of named services, and of the server as a whole (""). Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "server/rpc/rpc_service.h"

namespace shoal {

class HealthService final : public RpcService {
 public:
  HealthService();
  ~HealthService() override;

  std::string name() const override { return "grpc.health.v1.Health"; }
  std::map<std::string, RpcMethod> methods() override;

  // Those who watch are told. Names that were never set are unknown.
  void set(const std::string& service, bool serving);
  // Ends everybody who watches, now and later: the server ends.
  void end();

 private:
  class Watch;
  class Watchers;
  const std::shared_ptr<Watchers> watchers_;
};

}  // namespace shoal
