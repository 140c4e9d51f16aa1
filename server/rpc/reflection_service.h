// grpc.reflection, v1 or v1alpha (the same on the wire): lists the server's services and gives the proto
// files that they are made of, and no others. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "server/rpc/rpc_service.h"

namespace shoal {

class ReflectionService final : public RpcService {
 public:
  // `version`: "v1" or "v1alpha". `services`: names of all services, itself among them.
  ReflectionService(const std::string& version, std::vector<std::string> services);
  ~ReflectionService() override;

  std::string name() const override { return name_; }
  std::map<std::string, RpcMethod> methods() override;

 private:
  class Files;
  class Stream;
  const std::string name_;
  const std::shared_ptr<const Files> files_;
};

}  // namespace shoal
