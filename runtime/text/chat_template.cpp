#include "runtime/text/chat_template.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <filesystem>

#include "kernels/base/error.h"
#include "runtime/text/gguf_tokenizer.h"
#include "runtime/text/json_input.h"

namespace shoal {
namespace {

constexpr std::string_view kChatMl =
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

constexpr std::array<const char*, 7> kSpecialTokens = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};

constexpr std::array<std::string_view, 4> kReserved = {"messages", "tools", "documents",
                                                       "add_generation_prompt"};

jinja::Template parse(std::string_view source, const std::string& where) {
  try {
    return jinja::Template(source);
  } catch (const InvalidInput& error) {
    throw_invalid("{}: {}", where, error.what());
  }
}

// A string, or an AddedToken written out as an object; nothing if absent or null.
std::optional<std::string> token_content(const JsonObject& config, const char* key) {
  const auto* member = config.find(key);
  if (member == nullptr) return std::nullopt;
  if (member->is_object()) return JsonObject(*member, key).require_string("content");
  return config.require_string(key);
}

}  // namespace

ChatTemplate::ChatTemplate(std::string_view source, std::string bos_token, std::string eos_token)
    : bos_token_(std::move(bos_token)), eos_token_(std::move(eos_token)) {
  templates_.emplace_back("default", parse(source, "chat template"));
  special_tokens_ = {{"bos_token", bos_token_}, {"eos_token", eos_token_}};
}

ChatTemplate ChatTemplate::FromCheckpoint(const std::string& directory) {
  ChatTemplate result;
  if (is_gguf(directory)) {
    const auto model = GgufModel::open(directory);
    result.load_config_of(gguf_tokenizer_config_json(model->metadata()), directory);
  } else {
    result.load_folder(directory);
  }
  if (result.templates_.empty()) {
    result.templates_.emplace_back("default", parse(kChatMl, "ChatML"));
    result.is_fallback_ = true;
  }
  return result;
}

void ChatTemplate::load_config_of(const nlohmann::json& config, const std::string& source) {
  try {
    load_config(config);
  } catch (const InvalidInput& error) {
    throw_invalid("{}: {}", source, error.what());
  }
}

void ChatTemplate::load_folder(const std::string& directory) {
  const std::filesystem::path folder(directory);
  const std::string config_path = (folder / "tokenizer_config.json").string();
  const std::string template_path = (folder / "chat_template.jinja").string();
  if (std::filesystem::exists(config_path)) {
    load_config_of(parse_json(read_text_file(config_path), config_path), config_path);
  }
  if (std::filesystem::exists(template_path)) {
    templates_.clear();
    templates_.emplace_back("default", parse(read_text_file(template_path), template_path));
  }
}

void ChatTemplate::load_config(const nlohmann::json& json) {
  const JsonObject config(json, "");
  for (const char* key : kSpecialTokens) {
    if (auto content = token_content(config, key)) special_tokens_.emplace_back(key, *content);
  }
  bos_token_ = token_content(config, "bos_token").value_or("");
  eos_token_ = token_content(config, "eos_token").value_or("");
  const auto* member = config.find("chat_template");
  if (member == nullptr) return;
  if (member->is_string()) {
    templates_.emplace_back("default", parse(member->get<std::string>(), "chat_template"));
    return;
  }
  const auto& list = config.require_array("chat_template");
  for (size_t i = 0; i < list.size(); ++i) {
    const JsonObject entry(list[i], fmt::format("chat_template[{}]", i));
    const std::string name = entry.require_string("name");
    templates_.emplace_back(
        name, parse(entry.require_string("template"), fmt::format("chat_template \"{}\"", name)));
  }
  if (list.empty()) throw_invalid("chat_template is an empty list");
}

const jinja::Template& ChatTemplate::choose(bool with_tools) const {
  const auto find = [&](std::string_view name) {
    return std::find_if(templates_.begin(), templates_.end(),
                        [&](const auto& entry) { return entry.first == name; });
  };
  auto it = templates_.end();
  if (with_tools) it = find("tool_use");
  if (it == templates_.end()) it = find("default");
  if (it == templates_.end() && templates_.size() == 1) it = templates_.begin();
  if (it == templates_.end()) {
    throw_invalid("the checkpoint has several chat templates, none of them named \"default\"");
  }
  return it->second;
}

std::string ChatTemplate::render(const nlohmann::ordered_json& messages,
                                 const nlohmann::ordered_json& tools, bool add_generation_prompt,
                                 const nlohmann::ordered_json& kwargs) const {
  if (!messages.is_array()) throw_invalid("messages is {}, should be a list", messages.type_name());
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object()) {
      throw_invalid("messages[{}] is {}, should be an object", i, messages[i].type_name());
    }
  }
  if (!tools.is_null() && !tools.is_array()) {
    throw_invalid("tools is {}, should be a list", tools.type_name());
  }
  if (!kwargs.is_object()) {
    throw_invalid("chat_template_kwargs is {}, should be an object", kwargs.type_name());
  }
  jinja::Variables variables;
  for (const auto& [name, token] : special_tokens_) variables.emplace_back(name, token);
  const size_t fixed = variables.size();
  for (const auto& argument : kwargs.items()) {
    const std::string& name = argument.key();
    const bool reserved =
        std::find(kReserved.begin(), kReserved.end(), name) != kReserved.end() ||
        std::any_of(variables.begin(), variables.begin() + static_cast<ptrdiff_t>(fixed),
                    [&](const auto& variable) { return variable.first == name; });
    if (reserved) throw_invalid("chat_template_kwargs must not set {}", name);
    variables.emplace_back(name, argument.value());
  }
  variables.emplace_back("messages", messages);
  variables.emplace_back("tools", tools);
  variables.emplace_back("documents", nullptr);
  variables.emplace_back("add_generation_prompt", add_generation_prompt);
  const bool with_tools = tools.is_array() && !tools.empty();
  try {
    return choose(with_tools).render(variables, std::time(nullptr));
  } catch (const InvalidInput& error) {
    throw_invalid("chat template: {}", error.what());
  }
}

}  // namespace shoal
