// shoal.v1.Inference over gRPC's callback API. Messages are parsed here rather than by gRPC, which
// answers a message that does not parse (text that is not UTF-8) with an empty UNIMPLEMENTED.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "server/front_end.h"

namespace shoal {

// `front_end` must outlive the service and its server. `api_key` empty: everybody may call.
std::unique_ptr<grpc::Service> make_inference_service(FrontEnd& front_end, std::string api_key);

}  // namespace shoal
