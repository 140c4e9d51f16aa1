#include "server/rpc/guarded_service.h"

#include <spdlog/spdlog.h>

#include "kernels/base/error.h"
#include "server/call_status.h"
#include "server/rpc/reactors.h"
#include "server/security/caller.h"

namespace shoal {
namespace {

// Of a name that a client made up.
constexpr size_t kMaxShownName = 128;

}  // namespace

GuardedService::GuardedService(Guard& guard, const std::vector<RpcService*>& services)
    : guard_(guard) {
  for (RpcService* service : services) {
    for (auto& [name, call] : service->methods()) {
      const bool fresh =
          methods_.try_emplace("/" + service->name() + "/" + name, Method{service, name, call}).second;
      SHOAL_CHECK(fresh, "{} has two methods {}", service->name(), name);
    }
  }
}

grpc::ServerGenericBidiReactor* GuardedService::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  const auto method = methods_.find(context->method());
  CallContext caller = context_of(*context);
  try {
    caller.client = guard_.admit(context->method(), credentials_of(*context));
    if (method == methods_.end()) {
      return new RefusalReactor({grpc::StatusCode::UNIMPLEMENTED,
                                 "no method " + context->method().substr(0, kMaxShownName)});
    }
    return method->second.call(context, std::move(caller));
  } catch (const CallRefused& error) {
    if (method != methods_.end()) {
      method->second.service->refused(method->second.name, caller, {error.code(), error.what()});
    }
    return new RefusalReactor({static_cast<grpc::StatusCode>(error.code()), error.what()});
  } catch (const std::exception& error) {
    spdlog::error("bug in the front end: {}", error.what());
    return new RefusalReactor({grpc::StatusCode::INTERNAL, "internal error of the server"});
  }
}

}  // namespace shoal
