// A conversation as the text that the model was trained on, by the checkpoint's own template: the
// same text that transformers' apply_chat_template gives. Immutable after construction; every const
// method may be called from any number of threads.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/text/jinja.h"

namespace shoal {

class ChatTemplate {
 public:
  // From a checkpoint folder: chat_template.jinja if there is one, else the chat_template of
  // tokenizer_config.json (a string, or a list of named ones: "default", and "tool_use" when tools
  // are given). Or from the metadata of a GGUF file. A checkpoint without either gets ChatML, and is_fallback() says so.
  // Throws InvalidInput, naming the file, for a template that cannot be parsed.
  static ChatTemplate FromCheckpoint(const std::string& directory);

  // One template and the special tokens that it may write.
  ChatTemplate(std::string_view source, std::string bos_token, std::string eos_token);

  // `messages` is a list of objects as in the OpenAI API; null content is none. `tools` may be
  // null. `kwargs` is an object of further variables for the template, such as enable_thinking; it
  // cannot replace the variables that are set here (an operator allows names, a client chooses
  // values). Throws InvalidInput for what is not such a list, for what the template itself refuses,
  // and for a render that exceeds the limits.
  std::string render(const nlohmann::ordered_json& messages, const nlohmann::ordered_json& tools,
                     bool add_generation_prompt,
                     const nlohmann::ordered_json& kwargs = nlohmann::ordered_json::object()) const;

  // Whether the checkpoint had no template and ChatML stands in.
  bool is_fallback() const { return is_fallback_; }
  const std::string& bos_token() const { return bos_token_; }
  const std::string& eos_token() const { return eos_token_; }

 private:
  ChatTemplate() = default;
  void load_folder(const std::string& directory);
  void load_config_of(const nlohmann::json& config, const std::string& source);
  void load_config(const nlohmann::json& config);
  const jinja::Template& choose(bool with_tools) const;

  std::vector<std::pair<std::string, jinja::Template>> templates_;  // by name, never empty
  // More special tokens of the configuration (pad_token, ...), which transformers passes too.
  std::vector<std::pair<std::string, std::string>> special_tokens_;
  std::string bos_token_;
  std::string eos_token_;
  bool is_fallback_ = false;
};

}  // namespace shoal
