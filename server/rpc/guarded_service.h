// GuardedService: all methods of all services of a server, behind the guard. It is the server's only
// handler, so there is no way to a method around it, and a caller who may not call learns nothing, also not
// which methods there are. Refused before the request's message is read.
#pragma once

#include <grpcpp/generic/async_generic_service.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "server/rpc/rpc_service.h"
#include "server/security/guard.h"

namespace shoal {

class GuardedService final : public grpc::CallbackGenericService {
 public:
  // Services and guard must outlive it.
  GuardedService(Guard& guard, const std::vector<RpcService*>& services);

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override;

 private:
  struct Method {
    RpcService* service;
    std::string name;
    RpcMethod call;
  };
  Guard& guard_;
  std::map<std::string, Method, std::less<>> methods_;  // by "/service/method"
};

}  // namespace shoal
