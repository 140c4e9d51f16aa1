// Between engine.proto's messages and the runtime's structs. Knows protobuf, not gRPC.
#pragma once

#include "runtime/engine/engine.h"
#include "runtime/request/request.h"
#include "server/engine_client.h"
#include "shoal/engine/v1/engine.pb.h"

namespace shoal {

engine::v1::Submit to_message(const Request& request);
Request from_message(const engine::v1::Submit& message);

void to_message(const TokenEvent& event, engine::v1::TokenEvent* message);
TokenEvent from_message(const engine::v1::TokenEvent& message);

engine::v1::Stats to_message(const EngineStats& stats);
void update(EngineStatus& status, const engine::v1::Stats& message);
void update(EngineStatus& status, const engine::v1::Ready& message);

}  // namespace shoal
