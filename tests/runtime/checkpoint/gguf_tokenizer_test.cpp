// The tokenizer and chat template of a GGUF file: those of tokenizer.json with the same vocabulary.
#include "runtime/text/gguf_tokenizer.h"

#include <catch2/catch.hpp>
#include <fstream>
#include <functional>

#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/runtime/checkpoint/gguf_writer.h"

namespace shoal {
namespace {

using test::GgufWriter;
using test::TempDir;

constexpr const char* kText =
    "Hello world, it's 12345 o'clock!\n\n  def f(x):\treturn x**2  # 日本語のテキスト Ünïcödé "
    "<think> "
    "\xE6\x97\xA5\xCC\x81   ";

nlohmann::json golden_json(const std::string& name) {
  return nlohmann::json::parse(std::ifstream(
      fmt::format("{}/tests/golden/tokenizer/{}.tokenizer.json", SHOAL_SOURCE_DIR, name)));
}

// What llama.cpp's converter makes of a tokenizer.json.
GgufWriter converted(const nlohmann::json& json, const std::string& pre) {
  std::vector<std::string> tokens(json["model"]["vocab"].size() + json["added_tokens"].size());
  std::vector<int32_t> types(tokens.size(), 5);
  size_t used = 0;
  for (const auto& [token, id] : json["model"]["vocab"].items()) {
    tokens[id.get<size_t>()] = token;
    types[id.get<size_t>()] = 1;
    used = std::max(used, id.get<size_t>() + 1);
  }
  for (const auto& token : json["added_tokens"]) {
    const auto id = token["id"].get<size_t>();
    tokens[id] = token["content"];
    types[id] = token["special"].get<bool>() ? 3 : 4;
    used = std::max(used, id + 1);
  }
  for (size_t i = used; i < tokens.size(); ++i) tokens[i] = fmt::format("[PAD{}]", i);
  std::vector<std::string> merges;
  for (const auto& merge : json["model"]["merges"]) {
    merges.push_back(merge.is_string()
                         ? merge.get<std::string>()
                         : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  GgufWriter writer;
  writer.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", pre);
  writer.texts("tokenizer.ggml.tokens", tokens).i32s("tokenizer.ggml.token_type", types);
  return writer.texts("tokenizer.ggml.merges", merges).f32_tensor("t", {1}, {1});
}

Tokenizer open(const GgufWriter& writer) {
  const TempDir dir;
  dir.write("x.gguf", writer.bytes());
  return Tokenizer::FromCheckpoint(dir.path("x.gguf"));
}

TEST_CASE("a GGUF file's tokenizer gives the ids of the tokenizer.json it was made from") {
  const struct {
    const char *name, *pre;
  } cases[] = {{"deepseek", "deepseek-v3"},
               {"llama3", "llama-bpe"},
               {"qwen", "qwen2"},
               {"qwen", "deepseek-r1-qwen"}};
  for (const auto& [name, pre] : cases) {
    const nlohmann::json json = golden_json(name);
    const Tokenizer expected = Tokenizer::FromJson(json.dump());
    const Tokenizer tokenizer = open(converted(json, pre));
    INFO(name << " " << pre);
    CHECK(tokenizer.vocab_size() == expected.vocab_size());
    const EncodeOptions plain{.add_special_tokens = false}, literal{false, false};
    CHECK(tokenizer.encode(kText, plain) == expected.encode(kText, plain));
    const std::string special =
        std::string(expected.id_to_token(expected.vocab_size() - 1).value());
    CHECK(tokenizer.encode("a" + special + "b", plain) ==
          expected.encode("a" + special + "b", plain));
    CHECK(tokenizer.encode("a" + special + "b", literal) ==
          expected.encode("a" + special + "b", literal));
    CHECK(tokenizer.decode(tokenizer.encode(kText)) == expected.decode(expected.encode(kText)));
    for (int32_t id = 0; id < expected.vocab_size(); ++id) {
      REQUIRE(tokenizer.id_to_token(id) == expected.id_to_token(id));
      REQUIRE(tokenizer.is_special(id) == expected.is_special(id));
    }
  }
}

// A vocabulary of letters, to be spoilt.
struct Small {
  std::vector<std::string> tokens = {"<s>", "</s>", "a", "b", "ab", "1", "2", "12", "Ġ", "<u>"};
  std::vector<int32_t> types = {3, 3, 1, 1, 1, 1, 1, 1, 1, 4};
  std::vector<std::string> merges = {"a b", "1 2"};
  std::string model = "gpt2", pre = "gpt-2", skip;
  GgufWriter more;

  GgufWriter writer() const {
    GgufWriter w = more;
    if (skip != "model") w.text("tokenizer.ggml.model", model);
    if (skip != "pre") w.text("tokenizer.ggml.pre", pre);
    if (skip != "tokens") w.texts("tokenizer.ggml.tokens", tokens);
    if (skip != "token_type") w.i32s("tokenizer.ggml.token_type", types);
    if (skip != "merges") w.texts("tokenizer.ggml.merges", merges);
    return w.f32_tensor("t", {1}, {1});
  }
};

Tokenizer open_with(const std::function<void(Small&)>& spoil) {
  Small small;
  spoil(small);
  return open(small.writer());
}

TEST_CASE("how the pre-tokenizers of GGUF files cut digits") {
  const std::string text = "ab 12";
  using Ids = std::vector<int32_t>;
  CHECK(open_with([](Small&) {}).encode(text) == Ids{4, 8, 7});
  for (const char* pre : {"smollm", "deepseek-coder", "deepseek-llm", "qwen2"}) {
    INFO(pre);
    CHECK(open_with([&](Small& s) { s.pre = pre; }).encode(text) == Ids{4, 8, 5, 6});
  }
  for (const char* pre : {"llama-bpe", "deepseek-v3"}) {
    INFO(pre);
    CHECK(open_with([&](Small& s) { s.pre = pre; }).encode(text) == Ids{4, 8, 7});
  }
}

TEST_CASE("special tokens of a GGUF file") {
  using Ids = std::vector<int32_t>;
  const auto ids = [](Small& s) {
    s.more.u32("tokenizer.ggml.bos_token_id", 0).u32("tokenizer.ggml.eos_token_id", 1);
  };
  const Tokenizer none = open_with(ids);
  CHECK(none.bos_id() == 0);
  CHECK(none.eos_id() == 1);
  CHECK(none.encode("a") == Ids{2});
  CHECK(none.encode("<s>a<u>") == Ids{0, 2, 9});
  CHECK(none.encode("<u>", {.parse_special = false}) == Ids{9});  // added, not special
  const auto bos = [&](bool add) {
    return open_with([&](Small& s) {
      ids(s);
      s.pre = "llama-bpe";
      s.more.flag("tokenizer.ggml.add_bos_token", add);
    });
  };
  CHECK(bos(true).encode("a") == Ids{0, 2});
  CHECK(bos(false).encode("a") == Ids{2});
  const Tokenizer llama = open_with([&](Small& s) {
    ids(s);
    s.pre = "llama-bpe";
  });
  CHECK(llama.encode("a") == Ids{0, 2});  // unless the file says no
  const Tokenizer eos = open_with([&](Small& s) {
    ids(s);
    s.more.flag("tokenizer.ggml.add_eos_token", true);
  });
  CHECK(eos.encode("a") == Ids{2, 1});
  const Tokenizer unused = open_with([](Small& s) {
    s.tokens.insert(s.tokens.end(), {"[PAD10]", "[PAD11]"});
    s.types.insert(s.types.end(), {5, 5});
  });
  CHECK(unused.vocab_size() == 10);
}

TEST_CASE("GGUF tokenizers that are refused") {
  const auto field = [](auto member, const char* value) {
    return [=](Small& s) { s.*member = value; };
  };
  INVALID(open_with(field(&Small::model, "llama")), "x.gguf", "tokenizer.ggml.model", "\"llama\"",
          "SentencePiece");
  INVALID(open_with(field(&Small::model, "bert")), "\"bert\"", "byte-level BPE");
  INVALID(open_with(field(&Small::skip, "model")), "tokenizer.ggml.model", "missing");
  INVALID(open_with(field(&Small::pre, "tekken")), "tokenizer.ggml.pre", "\"tekken\"", "llama-bpe",
          "smollm");
  INVALID(open_with(field(&Small::skip, "pre")), "tokenizer.ggml.pre", "missing");
  INVALID(open_with(field(&Small::skip, "tokens")), "tokenizer.ggml.tokens", "missing");
  INVALID(open_with(field(&Small::skip, "merges")), "tokenizer.ggml.merges", "missing");
  INVALID(open_with([](Small& s) { s.tokens[3] = "a"; }), "tokens 2 and 3 are both \"a\"");
  INVALID(open_with([](Small& s) { s.tokens[3] = "\xff"; }), "\"\\xff\"", "UTF-8");
  INVALID(open_with([](Small& s) { s.merges[0] = "\xff a"; }), "tokenizer.ggml.merges", "UTF-8");
  INVALID(open_with([](Small& s) { s.merges[0] = "ab"; }), "x.gguf", "merges[0]");
  INVALID(open_with([](Small& s) { s.merges[0] = "a z"; }), "merges[0]", "\"z\"");
  INVALID(open_with([](Small& s) { s.types.pop_back(); }), "token_type", "10 tokens");
  INVALID(open_with([](Small& s) { s.types[2] = 9; }), "token_type", "9 for token 2");
  INVALID(open_with([](Small& s) { s.tokens[9] = ""; }), "x.gguf", "empty");
  INVALID(open_with([](Small& s) { s.more.u32("tokenizer.ggml.bos_token_id", 10); }),
          "bos_token_id", "10");
  INVALID(open_with([](Small& s) { s.more.flag("tokenizer.ggml.add_bos_token", true); }),
          "add_bos_token", "no such token");
}

TEST_CASE("chat templates of a GGUF file") {
  const auto open_template = [](const std::function<void(GgufWriter&)>& add) {
    Small small;
    small.more.u32("tokenizer.ggml.bos_token_id", 0);
    add(small.more);
    const TempDir dir;
    dir.write("x.gguf", small.writer().bytes());
    return ChatTemplate::FromCheckpoint(dir.path("x.gguf"));
  };
  const nlohmann::ordered_json messages = {{{"role", "user"}, {"content", "hi"}}};
  const nlohmann::ordered_json tools = {{{"type", "function"}}};
  const auto one = open_template([](GgufWriter& w) {
    w.text("tokenizer.chat_template", "{{ bos_token }}{{ messages[0]['content'] }}");
  });
  CHECK_FALSE(one.is_fallback());
  CHECK(one.render(messages, nullptr, true) == "<s>hi");
  CHECK(open_template([](GgufWriter&) {}).is_fallback());
  const auto two = open_template([](GgufWriter& w) {
    w.text("tokenizer.chat_template", "plain").texts("tokenizer.chat_templates", {"tool_use"});
    w.text("tokenizer.chat_template.tool_use", "tools");
  });
  CHECK(two.render(messages, nullptr, true) == "plain");
  CHECK(two.render(messages, tools, true) == "tools");
  INVALID(open_template([](GgufWriter& w) { w.text("tokenizer.chat_template", "{% if %}"); }),
          "x.gguf", "chat_template");
  INVALID(open_template([](GgufWriter& w) { w.texts("tokenizer.chat_templates", {"rag"}); }),
          "tokenizer.chat_template.rag", "missing");
}

}  // namespace
}  // namespace shoal
