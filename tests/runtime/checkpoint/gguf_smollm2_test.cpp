// The real model SmolLM2-135M-Instruct (Q4_1), where SHOAL_SMOLLM2_GGUF names its file
// (docs/quantization.md, "GGUF").
#include <catch2/catch.hpp>
#include <cstdlib>

#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "tests/runtime/checkpoint/gguf_sequence.h"
#include "tests/support/skip.h"

namespace shoal {
namespace {

TEST_CASE("SmolLM2-135M-Instruct answers from its GGUF file") {
  const char* path = std::getenv("SHOAL_SMOLLM2_GGUF");
  if (path == nullptr)
    SHOAL_SKIP("SHOAL_SMOLLM2_GGUF does not name SmolLM2-135M-Instruct.Q4_1.gguf");
  const Tokenizer tokenizer = Tokenizer::FromCheckpoint(path);
  const ChatTemplate chat = ChatTemplate::FromCheckpoint(path);
  const nlohmann::ordered_json messages = {
      {{"role", "user"}, {"content", "What is the capital of France?"}}};
  std::vector<int32_t> tokens =
      tokenizer.encode(chat.render(messages, nullptr, true), {.add_special_tokens = false});
  const auto model = test::load_gguf(path, "bfloat16", 256);
  test::Sequence sequence(*model);
  std::span<const float> logits = sequence.run(tokens, false);
  std::vector<int32_t> answer;
  for (int i = 0; i < 40; ++i) {
    const auto next =
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    const auto& ends = model->config.eos_token_ids;
    if (std::find(ends.begin(), ends.end(), next) != ends.end()) break;
    answer.push_back(next);
    logits = sequence.run(std::span(&answer.back(), 1), false);
  }
  const std::string text = tokenizer.decode(answer);
  CHECK_THAT(text, Catch::Contains("Paris"));
}

}  // namespace
}  // namespace shoal
