// The model that the server tests pretend to serve.
#pragma once

#include <string>
#include <vector>

#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "server/front_end.h"

namespace shoal {

inline const Tokenizer& test_tokenizer() {
  static const Tokenizer tokenizer =
      Tokenizer::FromFile(SHOAL_SOURCE_DIR "/tests/golden/tokenizer/deepseek.tokenizer.json");
  return tokenizer;
}

inline constexpr int32_t kTestEnd = 1;  // <｜end▁of▁sentence｜>

inline std::vector<int32_t> test_ids(const std::string& text) {
  return test_tokenizer().encode(text, {.add_special_tokens = false});
}

// Opens <think> when asked to, as the templates of reasoning models do.
inline ChatTemplate test_template() {
  return ChatTemplate(
      "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
      "assistant: {% if thinking %}<think>\n{% endif %}",
      "", "");
}

inline ServedModel test_model() {
  ServedModel model;
  model.name = "test/model";
  model.architecture = "DeepseekV3ForCausalLM";
  model.vocab_size = test_tokenizer().vocab_size();
  model.eos_token_ids = {kTestEnd};
  return model;
}

}  // namespace shoal
