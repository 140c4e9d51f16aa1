#include "runtime/text/tokenizer.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "tests/runtime/text/small_tokenizer.h"

namespace shoal {
namespace {

using Ids = std::vector<int32_t>;

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "shoal_text_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

TEST_CASE("Tokens, ids and special tokens") {
  const Tokenizer tokenizer = Tokenizer::FromJson(small_tokenizer_json().dump());
  const int32_t size = tokenizer.vocab_size();
  CHECK(size == 263);
  CHECK(tokenizer.token_to_id("<s>") == size - 2);
  CHECK(tokenizer.token_to_id("the") == 257);
  CHECK_FALSE(tokenizer.token_to_id("nothing").has_value());
  CHECK(tokenizer.id_to_token(257) == std::string_view("the"));
  CHECK_FALSE(tokenizer.id_to_token(-1).has_value());
  CHECK_FALSE(tokenizer.id_to_token(size).has_value());
  CHECK(tokenizer.is_special(size - 2));
  CHECK_FALSE(tokenizer.is_special(size - 1));
  CHECK_FALSE(tokenizer.is_special(size));
  CHECK_FALSE(tokenizer.bos_id().has_value());

  CHECK(tokenizer.encode("the<s>x") == Ids{257, size - 2, 'x'});
  CHECK(tokenizer.encode("<s>", {.parse_special = false}) == Ids{'<', 's', '>'});
  CHECK(tokenizer.encode("<think>", {.parse_special = false}) == Ids{size - 1});
  CHECK(tokenizer.encode("").empty());
  CHECK(tokenizer.decode(Ids{257, size - 2, 'x'}) == "the<s>x");
  CHECK(tokenizer.decode(Ids{257, size - 2, 'x'}, true) == "thex");
  CHECK(tokenizer.decode(Ids{-5, 'x', size, 1 << 30}) == "x");
}

TEST_CASE("Added tokens: the longest, single words, stripping") {
  auto json = small_tokenizer_json();
  auto& added = json["added_tokens"];
  const auto add = [&](const std::string& content, const nlohmann::json& flags) {
    nlohmann::json token = added[1];
    token["content"] = content;
    token["id"] = 261 + added.size();
    token.update(flags);
    added.push_back(token);
  };
  add("<think>ing", nlohmann::json::object());
  add("[W]", {{"single_word", true}});
  add("[L]", {{"lstrip", true}});
  add("[R]", {{"rstrip", true}, {"normalized", true}});
  const Tokenizer tokenizer = Tokenizer::FromJson(json.dump());
  CHECK(tokenizer.encode("<think>ing<think>in") == Ids{263, 262, 'i', 'n'});
  CHECK(tokenizer.encode("a[W]").size() == 4);
  CHECK(tokenizer.encode("-[W]-") == Ids{'-', 264, '-'});
  CHECK(tokenizer.encode("x \u3000[L] y") == Ids{'x', 265, ' ', 'y'});
  CHECK(tokenizer.encode("x [R] \n y") == Ids{'x', ' ', 266, 'y'});
  CHECK(tokenizer.encode("[R]  [L]") == Ids{266, 265});
}

TEST_CASE("The post-processor and the configuration add special tokens") {
  auto json = small_tokenizer_json();
  json["post_processor"] = nlohmann::json::parse(R"({"type": "Sequence", "processors": [
    {"type": "ByteLevel"},
    {"type": "TemplateProcessing",
     "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "e", "type_id": 0}}],
     "special_tokens": {"<s>": {"id": "<s>", "ids": [261], "tokens": ["<s>"]},
                        "e": {"id": "e", "ids": [262], "tokens": ["<think>"]}}}]})");
  CHECK(Tokenizer::FromJson(json.dump()).encode("x") == Ids{261, 'x', 262});
  CHECK(Tokenizer::FromJson(json.dump()).encode("x", {.add_special_tokens = false}) == Ids{'x'});

  const TemporaryFolder folder;
  folder.write("tokenizer.json", json.dump());
  CHECK_FALSE(Tokenizer::FromCheckpoint(folder.path()).bos_id().has_value());
  folder.write("tokenizer_config.json",
               R"({"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "the",
                   "add_bos_token": true, "add_eos_token": false})");
  const Tokenizer tokenizer = Tokenizer::FromCheckpoint(folder.path());
  CHECK(tokenizer.bos_id() == 261);
  CHECK(tokenizer.eos_id() == 257);
  CHECK(tokenizer.encode("x") == Ids{261, 'x'});

  folder.write("tokenizer_config.json", R"({"bos_token": "missing"})");
  CHECK_THROWS_WITH(Tokenizer::FromCheckpoint(folder.path()), Catch::Contains("missing"));
  folder.write("tokenizer_config.json", R"({"add_bos_token": true})");
  CHECK_THROWS_WITH(Tokenizer::FromCheckpoint(folder.path()), Catch::Contains("add_bos_token"));
  CHECK_THROWS_WITH(Tokenizer::FromCheckpoint(folder.path() + "/none"),
                    Catch::Contains("no such file"));
}

TEST_CASE("Invalid UTF-8 is encoded as U+FFFD") {
  const Tokenizer tokenizer = Tokenizer::FromJson(small_tokenizer_json().dump());
  CHECK(tokenizer.encode("a\xF0\x9F\x99") == tokenizer.encode("a\uFFFD"));
  CHECK(tokenizer.encode("\xC0\x80") == tokenizer.encode("\uFFFD\uFFFD"));
  CHECK(tokenizer.encode(std::string("a\0b", 3)).size() == 3);
}

TEST_CASE("Text that is hard on the splitter is encoded, not refused") {
  auto json = small_tokenizer_json();
  json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  json["normalizer"] = {{"type", "NFC"}};
  const Tokenizer tokenizer = Tokenizer::FromJson(json.dump());
  for (const std::string unit : {" ", "\n", " \n", "a", "1", "!", "\u0301", "\u3000", "'", "<s"}) {
    std::string text;
    while (text.size() < 300'000) text += unit;
    INFO(unit);
    CHECK(tokenizer.decode(tokenizer.encode(text)).size() >= 299'000);
  }
}

TEST_CASE("A hostile tokenizer.json is refused with its name") {
  const auto refused = [](const nlohmann::json& change, const std::string& named) {
    auto json = small_tokenizer_json();
    json.merge_patch(change);
    INFO(change.dump());
    CHECK_THROWS_WITH(Tokenizer::FromJson(json.dump(), "some/tokenizer.json"),
                      Catch::Contains(named) && Catch::Contains("some/tokenizer.json"));
    CHECK_THROWS_AS(Tokenizer::FromJson(json.dump()), InvalidInput);
  };
  refused({{"model", {{"merges", {"the zz"}}}}}, "\"zz\"");
  refused({{"model", {{"vocab", {{"the", 5}}}}}}, "same id 5");
  refused({{"model", {{"vocab", {{"the", 1000}}}}}}, "has id 1000");
  refused({{"model", {{"vocab", {{"the", 2147483647}}}}}}, "has id 2147483647");
  refused({{"model", nullptr}}, "model");
  refused({{"model", 3}}, "model");
  refused({{"normalizer", {{"type", "NFKC"}}}}, "NFKC");
  refused({{"decoder", {{"type", "Metaspace"}}}}, "Metaspace");
  refused({{"decoder", nullptr}}, "decoder");
  refused({{"pre_tokenizer", nullptr}}, "ByteLevel");
  refused({{"post_processor", {{"type", "RobertaProcessing"}}}}, "RobertaProcessing");
  refused({{"added_tokens", 1}}, "added_tokens");
  refused({{"added_tokens", {1}}}, "added_tokens[0]");
  refused({{"added_tokens", {{{"id", 261}}}}}, "added_tokens[0].content");
  refused({{"added_tokens", {{{"id", 261}, {"content", ""}}}}}, "empty");
  refused({{"added_tokens", {{{"id", 400}, {"content", "<x>"}}}}}, "has id 400");
  refused({{"added_tokens", {{{"id", 3}, {"content", "<x>"}}}}}, "same id 3");
  refused({{"added_tokens", {{{"id", 3}, {"content", "the"}}}}}, "model.vocab gives it 257");
  refused(
      {{"added_tokens", {{{"id", 257}, {"content", "the"}}, {{"id", 257}, {"content", "the"}}}}},
      "twice");
  refused({{"post_processor",
            {{"type", "TemplateProcessing"},
             {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
             {"special_tokens", {{"<s>", {{"ids", {99999}}}}}}}}},
          "99999");
}

TEST_CASE("Broken JSON is refused") {
  for (const std::string text : {"", "null", "[]", "{", "\"x\"", "{\"model\":", "\xFF", "{}"}) {
    CHECK_THROWS_AS(Tokenizer::FromJson(text), InvalidInput);
  }
  const std::string deep(100'000, '[');
  CHECK_THROWS_WITH(Tokenizer::FromJson("{\"model\":" + deep), Catch::Contains("nested deeper"));
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  CHECK_THROWS_AS(Tokenizer::FromJson(objects), InvalidInput);
}

TEST_CASE("A tokenizer.json cut off anywhere is refused") {
  const std::string text = small_tokenizer_json().dump();
  for (size_t length = 0; length < text.size(); length += 1 + length / 97) {
    CHECK_THROWS_AS(Tokenizer::FromJson(text.substr(0, length)), InvalidInput);
  }
}

TEST_CASE("A tokenizer.json with one byte changed loads or is refused, and never crashes") {
  const std::string text = small_tokenizer_json().dump();
  uint32_t random = 12345;
  for (int round = 0; round < 500; ++round) {
    random = random * 1664525 + 1013904223;
    std::string changed = text;
    changed[random % text.size()] = static_cast<char>(random >> 24);
    try {
      const Tokenizer tokenizer = Tokenizer::FromJson(changed);
      for (const int32_t id : tokenizer.encode("the <s> abc \xFF")) {
        REQUIRE(id >= 0);
        REQUIRE(id < tokenizer.vocab_size());
      }
    } catch (const InvalidInput&) {
    }
  }
}

}  // namespace
}  // namespace shoal
