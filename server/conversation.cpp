#include "server/conversation.h"

#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "runtime/text/json_input.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

// In the form of the OpenAI API, which chat templates are written for. Arguments of tool calls are
// an object, or their JSON text.
ordered_json to_json(const v1::Message& message, bool arguments_as_text) {
  ordered_json out;
  out["role"] = message.role();
  // Templates ask for none, not for an empty text, where an assistant only makes calls.
  const bool only_calls = message.content().empty() && message.tool_calls_size() > 0;
  out["content"] = only_calls ? ordered_json() : ordered_json(message.content());
  if (!message.reasoning_content().empty()) out["reasoning_content"] = message.reasoning_content();
  if (!message.tool_call_id().empty()) out["tool_call_id"] = message.tool_call_id();
  if (!message.name().empty()) out["name"] = message.name();
  for (const v1::ToolCall& call : message.tool_calls()) {
    ordered_json item;
    item["id"] = call.id();
    item["type"] = "function";
    item["function"]["name"] = call.name();
    item["function"]["arguments"] = arguments_as_text
                                        ? ordered_json(call.arguments())
                                        : parse_ordered_json(call.arguments(), "arguments");
    out["tool_calls"].push_back(std::move(item));
  }
  return out;
}

}  // namespace

std::string render_conversation(const ChatTemplate& chat_template,
                                const google::protobuf::RepeatedPtrField<v1::Message>& messages,
                                const google::protobuf::RepeatedPtrField<std::string>& tools,
                                const google::protobuf::Map<std::string, std::string>& kwargs) {
  ordered_json tools_json, kwargs_json = ordered_json::object();  // no tools: null
  for (const std::string& tool : tools) tools_json.push_back(parse_ordered_json(tool, "tools"));
  for (const auto& [name, value] : kwargs) kwargs_json[name] = value == "true";
  bool has_calls = false;
  const auto render = [&](bool arguments_as_text) {
    ordered_json list = ordered_json::array();
    for (const v1::Message& message : messages) {
      has_calls = has_calls || message.tool_calls_size() > 0;
      list.push_back(to_json(message, arguments_as_text));
    }
    return chat_template.render(list, tools_json, /*add_generation_prompt=*/true, kwargs_json);
  };
  try {
    return render(/*arguments_as_text=*/false);
  } catch (const InvalidInput&) {
    // DeepSeek's templates join the arguments to text as they are; others ask for an object.
    if (!has_calls) throw;
    return render(/*arguments_as_text=*/true);
  }
}

}  // namespace shoal
