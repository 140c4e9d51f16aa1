// What a gRPC call's metadata and certificate say of its caller. Includes no gRPC header.
#pragma once

#include "server/call_context.h"
#include "server/security/guard.h"

namespace grpc {
class ServerContextBase;
}

namespace shoal {

Credentials credentials_of(const grpc::ServerContextBase& context);
// All but the client, which is the guard's to say. A request id or trace context that is not what its
// header may hold is left out, not refused: it is for logs.
CallContext context_of(const grpc::ServerContextBase& context);

}  // namespace shoal
