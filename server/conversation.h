// A conversation of the public API as the prompt that the checkpoint's chat template makes of it.
#pragma once

#include <string>

#include "runtime/text/chat_template.h"
#include "shoal/v1/inference.pb.h"

namespace shoal {

// The conversation must have been checked (request_validation.h). Throws InvalidInput when the
// template refuses it.
std::string render_conversation(const ChatTemplate& chat_template,
                                const google::protobuf::RepeatedPtrField<v1::Message>& messages,
                                const google::protobuf::RepeatedPtrField<std::string>& tools,
                                const google::protobuf::Map<std::string, std::string>& kwargs);

}  // namespace shoal
