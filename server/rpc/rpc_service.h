// How a gRPC service is given to the server: a table of its methods. All services of a server hang in one
// generic handler that asks the guard first (GuardedService), so a method is never reached by a caller who
// may not call: a service has nothing to do for that, and cannot forget it.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "server/call_context.h"
#include "server/call_status.h"

namespace grpc {
class ByteBuffer;
class GenericCallbackServerContext;
template <class Request, class Response>
class ServerBidiReactor;
}  // namespace grpc

namespace shoal {

using RpcReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

// Makes the reactor of one call; it reads its request itself and deletes itself when done (rpc/reactors.h).
using RpcMethod = std::function<RpcReactor*(grpc::GenericCallbackServerContext*, CallContext)>;

class RpcService {
 public:
  virtual ~RpcService() = default;
  virtual std::string name() const = 0;  // "shoal.v1.Inference"
  // By name in the service ("Chat"). Asked once; they are called from any thread while the server lives.
  virtual std::map<std::string, RpcMethod> methods() = 0;
  // The guard let a call of one of its methods not through.
  virtual void refused(const std::string& /*method*/, const CallContext& /*caller*/,
                       const CallStatus& /*status*/) {}
};

}  // namespace shoal
