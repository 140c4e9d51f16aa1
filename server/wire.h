// Between the public messages and the front end's own structs. Knows protobuf, not gRPC.
#pragma once

#include <string>

#include "server/call.h"
#include "server/front_end.h"
#include "shoal/v1/inference.pb.h"

namespace shoal {

// Throws InvalidInput when the bytes are no such message, naming the text field that is not UTF-8.
void parse_message(const std::string& bytes, google::protobuf::Message* message);

// Adds an update to a response that has its id, model and time. False when there is nothing to say
// yet (tokens whose text waits).
bool fill_response(const FrontEnd& front_end, const CallUpdate& update, v1::ChatResponse* response);
bool fill_response(const FrontEnd& front_end, const CallUpdate& update,
                   v1::CompleteResponse* response);

}  // namespace shoal
