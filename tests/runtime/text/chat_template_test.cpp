#include "runtime/text/chat_template.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <string>

#include "kernels/base/error.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

class Checkpoint {
 public:
  Checkpoint() {
    std::string name = (std::filesystem::temp_directory_path() / "shoal_chat_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Checkpoint() { std::filesystem::remove_all(path_); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }
  ChatTemplate load() const { return ChatTemplate::FromCheckpoint(path_.string()); }

 private:
  std::filesystem::path path_;
};

const Json kMessages = {{{"role", "user"}, {"content", "Hi"}}};

TEST_CASE("Conversations render as with transformers") {
  std::ifstream file(SHOAL_SOURCE_DIR "/tests/golden/templates/golden.json");
  REQUIRE(file);
  const Json golden = Json::parse(file);
  const auto load = [&](const Json& item) {
    const Json& entry = golden["templates"][item["template"].get<std::string>()];
    return ChatTemplate(entry["chat_template"].get<std::string>(), entry["bos_token"],
                        entry["eos_token"]);
  };
  const auto render = [&](const Json& item) {
    return load(item).render(item["messages"], item["tools"], item["add_generation_prompt"],
                             item["kwargs"]);
  };
  REQUIRE(golden["cases"].size() >= 300);
  for (const Json& item : golden["cases"]) {
    INFO(item["template"] << " " << item["title"]);
    CHECK(render(item) == item["expected"].get<std::string>());
  }
  for (const Json& item : golden["error_cases"]) {
    INFO(item["template"] << " " << item["error"]);
    CHECK_THROWS_AS(render(item), InvalidInput);
  }
}

TEST_CASE("Where a checkpoint's template comes from") {
  const Checkpoint checkpoint;
  CHECK(checkpoint.load().is_fallback());
  CHECK(checkpoint.load().render(kMessages, nullptr, true) ==
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");

  checkpoint.write(
      "tokenizer_config.json",
      R"({"chat_template": "{{ bos_token }}A{{ pad_token }}{{ eos_token }}", "bos_token": "<s>",
                       "eos_token": {"__type": "AddedToken", "content": "</s>"}, "pad_token": "<pad>"})");
  CHECK_FALSE(checkpoint.load().is_fallback());
  CHECK(checkpoint.load().bos_token() == "<s>");
  CHECK(checkpoint.load().eos_token() == "</s>");
  CHECK(checkpoint.load().render(kMessages, nullptr, false) == "<s>A<pad></s>");

  checkpoint.write("chat_template.jinja", "from file {{ bos_token }}\n");
  CHECK(checkpoint.load().render(kMessages, nullptr, false) == "from file <s>");
}

TEST_CASE("Named templates: tool_use when tools are given") {
  const Checkpoint checkpoint;
  checkpoint.write("tokenizer_config.json", R"({"chat_template": [
      {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }} tools"}]})");
  const ChatTemplate chat = checkpoint.load();
  CHECK(chat.render(kMessages, nullptr, false) == "plain");
  CHECK(chat.render(kMessages, Json::array(), false) == "plain");
  CHECK(chat.render(kMessages, Json::array({{{"type", "function"}}}), false) == "1 tools");
  checkpoint.write("tokenizer_config.json", R"({"chat_template": [
      {"name": "a", "template": "x"}, {"name": "b", "template": "y"}]})");
  CHECK_THROWS_WITH(checkpoint.load().render(kMessages, nullptr, false),
                    Catch::Contains("default"));
}

TEST_CASE("Extra variables are passed on, but replace nothing") {
  const ChatTemplate chat("{{ enable_thinking }}{{ bos_token }}", "<s>", "</s>");
  CHECK(chat.render(kMessages, nullptr, false, {{"enable_thinking", false}}) == "False<s>");
  for (const char* name :
       {"messages", "tools", "documents", "add_generation_prompt", "bos_token"}) {
    CHECK_THROWS_WITH(chat.render(kMessages, nullptr, false, {{name, "x"}}), Catch::Contains(name));
  }
}

TEST_CASE("What is not a conversation is refused by the name of the field") {
  const ChatTemplate chat("{{ messages[0].content }}", "", "");
  CHECK_THROWS_WITH(chat.render("x", nullptr, false), Catch::Contains("messages"));
  CHECK_THROWS_WITH(chat.render({1}, nullptr, false), Catch::Contains("messages[0]"));
  CHECK_THROWS_WITH(chat.render(kMessages, "x", false), Catch::Contains("tools"));
  CHECK_THROWS_WITH(chat.render(kMessages, nullptr, false, Json::array()),
                    Catch::Contains("chat_template_kwargs"));
  Json deep = "x";
  for (int i = 0; i < 500; ++i) deep = Json::array({deep});
  CHECK_THROWS_WITH(chat.render({{{"role", "user"}, {"content", deep}}}, nullptr, false),
                    Catch::Contains("nested deeper"));
}

TEST_CASE("Broken checkpoints are refused with the file's name") {
  const Checkpoint checkpoint;
  const auto refused = [&](const std::string& config) {
    checkpoint.write("tokenizer_config.json", config);
    CHECK_THROWS_WITH(checkpoint.load(), Catch::Contains("tokenizer_config.json"));
    CHECK_THROWS_AS(checkpoint.load(), InvalidInput);
  };
  refused("");
  refused("[]");
  refused(R"({"chat_template": 5})");
  refused(R"({"chat_template": []})");
  refused(R"({"chat_template": [{"name": "default"}]})");
  refused(R"({"chat_template": "{% if %}"})");
  refused(R"({"bos_token": 5})");
  refused(R"({"bos_token": {"content": 5}})");
  checkpoint.write("tokenizer_config.json", "{}");
  checkpoint.write("chat_template.jinja", "\n{{ 1 + }}");
  CHECK_THROWS_WITH(checkpoint.load(),
                    Catch::Contains("chat_template.jinja") && Catch::Contains("line 2"));
}

}  // namespace
}  // namespace shoal
