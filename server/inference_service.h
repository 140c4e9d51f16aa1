// shoal.v1.Inference over gRPC's callback API. Messages are parsed here rather than by gRPC, which
// answers a message that does not parse (text that is not UTF-8) with an empty UNIMPLEMENTED.
#pragma once

#include <memory>

#include "server/front_end.h"
#include "server/rpc/rpc_service.h"

namespace shoal {

// `front_end` must outlive the service and its server.
std::unique_ptr<RpcService> make_inference_service(FrontEnd& front_end);

}  // namespace shoal
