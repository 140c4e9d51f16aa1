// A chat template: it is refused, or renders valid UTF-8, within its limits.
#include <cstdlib>
#include <string_view>

#include "kernels/base/error.h"
#include "runtime/text/jinja.h"
#include "runtime/text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto messages = nlohmann::ordered_json::parse(R"([
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi é 日本\n <b>", "tags": [1, 2.5, null, true, ["x"]]},
    {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
  ])");
  static const shoal::jinja::Variables variables = {{"messages", messages},
                                                    {"tools", messages},
                                                    {"bos_token", "<s>"},
                                                    {"add_generation_prompt", true},
                                                    {"n", 3}};
  // Small, so that the fuzzer tries many templates instead of running a few long ones.
  const shoal::jinja::RenderLimits limits{.max_steps = 100'000, .max_depth = 200};
  try {
    const shoal::jinja::Template chat(std::string_view(reinterpret_cast<const char*>(data), size));
    if (!shoal::is_valid_utf8(chat.render(variables, 0, limits))) std::abort();
  } catch (const shoal::InvalidInput&) {
  }
  return 0;
}
