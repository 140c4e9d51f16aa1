#include "runtime/text/gguf_tokenizer.h"

#include <unordered_map>

#include "kernels/base/error.h"
#include "runtime/checkpoint/gguf_config.h"
#include "runtime/checkpoint/strict_json.h"
#include "runtime/text/unicode.h"

namespace shoal {
namespace {

using Json = nlohmann::json;

// llama.cpp's kinds of tokens.
enum class TokenType { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

Json split(const char* regex) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

Json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

Json digits() { return {{"type", "Digits"}, {"individual_digits", true}}; }

// The pre_tokenizers of the published tokenizer.json files.
Json llama3() {
  return {split(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
                R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"),
          byte_level(false)};
}
Json qwen2() {
  return {split(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
                R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"),
          byte_level(false)};
}
Json deepseek_v3() {
  return {split(R"(\p{N}{1,3})"), split(R"([一-龥぀-ゟ゠-ヿ]+)"),
          split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
                "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|"
                "\\s+(?!\\S)|\\s+"),
          byte_level(false)};
}
Json deepseek_llm() {  // DeepSeek-V2: the alphabets that have case, as ranges
  return {split("[\r\n]"),
          // clang-format off
          split("\\s?["
                "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-"
                "\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-"
                "\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-"
                "\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
                "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-"
                "\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
                "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
                "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119"
                "-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145"
                "-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
                "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-"
                "\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-"
                "\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
                "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
                "]+"),
          // clang-format on
          split("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
          split("\\s+$"), split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), digits(),
          byte_level(false)};
}
Json deepseek_coder() {
  return {split("[\r\n]"),
          split("\\s?\\p{L}+"),
          split("\\s?\\p{P}+"),
          split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
          digits(),
          byte_level(false)};
}
Json smollm() { return {digits(), byte_level(true)}; }
Json gpt2() { return Json::array({byte_level(true)}); }

struct PreTokenizerKind {
  const char* name;
  Json (*steps)();
  bool ignore_merges = false;
  bool nfc = false;
  bool adds_bos = false;  // where the file does not say
};
constexpr PreTokenizerKind kKinds[] = {{"llama-bpe", llama3, true, false, true},
                                       {"llama-v3", llama3, true, false, true},
                                       {"llama3", llama3, true, false, true},
                                       {"qwen2", qwen2, false, true},
                                       {"deepseek-r1-qwen", qwen2, false, true},
                                       {"deepseek-llm", deepseek_llm},
                                       {"deepseek-coder", deepseek_coder},
                                       {"deepseek-v3", deepseek_v3},
                                       {"smollm", smollm},
                                       {"gpt-2", gpt2}};

const PreTokenizerKind& pre_tokenizer_kind(const GgufMetadata& metadata) {
  constexpr const char* kKey = "tokenizer.ggml.pre";
  const std::string* name = metadata.text(kKey);
  std::string known;
  for (const PreTokenizerKind& kind : kKinds) {
    if (name != nullptr && *name == kind.name) return kind;
    known += (known.empty() ? "" : ", ") + std::string(kind.name);
  }
  metadata.refuse(kKey, fmt::format("supported are {}", known));
}

const std::vector<std::string>& tokens_of(const GgufMetadata& metadata) {
  constexpr const char* kModel = "tokenizer.ggml.model";
  const std::string* model = metadata.text(kModel);
  if (model == nullptr || *model != "gpt2") {
    metadata.refuse(kModel, model != nullptr && *model == "llama"
                                ? "a SentencePiece tokenizer, which is not supported; only "
                                  "byte-level BPE (\"gpt2\") is"
                                : "only \"gpt2\" (byte-level BPE) is supported");
  }
  const auto* tokens = metadata.strings("tokenizer.ggml.tokens");
  if (tokens == nullptr) metadata.refuse_missing("tokenizer.ggml.tokens", "the vocabulary");
  constexpr size_t kMaxTokens = size_t{1} << 24;
  if (tokens->empty() || tokens->size() > kMaxTokens) {
    metadata.refuse("tokenizer.ggml.tokens", fmt::format("should be 1 to {} tokens", kMaxTokens));
  }
  return *tokens;
}

TokenType token_type(const GgufMetadata& metadata, const GgufArray* types, size_t id) {
  if (types == nullptr) return TokenType::kNormal;
  const int64_t type = types->integer(id);
  if (type < 1 || type > static_cast<int64_t>(TokenType::kByte)) {
    throw_invalid("{}: key \"tokenizer.ggml.token_type\" has {} for token {}, should be 1 to 6",
                  metadata.source(), type, id);
  }
  return static_cast<TokenType>(type);
}

std::optional<std::string> token_of(const GgufMetadata& metadata, const std::string& key,
                                    const std::vector<std::string>& tokens) {
  const auto id = gguf_token_id(metadata, key);
  if (!id) return std::nullopt;
  if (*id < 0 || *id >= static_cast<int64_t>(tokens.size())) {
    metadata.refuse(key, fmt::format("there are {} tokens", tokens.size()));
  }
  return tokens[static_cast<size_t>(*id)];
}

std::string checked_utf8(const GgufMetadata& metadata, const std::string& key,
                         const std::string& text) {
  if (!is_valid_utf8(text)) {
    throw_invalid("{}: key {} holds {}, which is not valid UTF-8", metadata.source(),
                  in_quotes(key), in_quotes(text));
  }
  return text;
}

}  // namespace

Json gguf_tokenizer_json(const GgufMetadata& metadata) {
  const std::vector<std::string>& tokens = tokens_of(metadata);
  const PreTokenizerKind& kind = pre_tokenizer_kind(metadata);
  const GgufArray* types = metadata.integers("tokenizer.ggml.token_type");
  if (types != nullptr && types->size() != tokens.size()) {
    metadata.refuse("tokenizer.ggml.token_type",
                    fmt::format("should be one number for each of {} tokens", tokens.size()));
  }
  size_t used = tokens.size();
  while (used > 0 && token_type(metadata, types, used - 1) == TokenType::kUnused) --used;

  Json vocab = Json::object(), added = Json::array();
  std::unordered_map<std::string_view, size_t> ids;
  ids.reserve(used);
  for (size_t id = 0; id < used; ++id) {
    const std::string token = checked_utf8(metadata, "tokenizer.ggml.tokens", tokens[id]);
    const auto [first, inserted] = ids.emplace(tokens[id], id);
    if (!inserted) {
      throw_invalid("{}: tokens {} and {} are both {}", metadata.source(), first->second, id,
                    in_quotes(token));
    }
    const TokenType type = token_type(metadata, types, id);
    if (type == TokenType::kControl || type == TokenType::kUserDefined) {
      added.push_back({{"id", id},
                       {"content", token},
                       {"special", type == TokenType::kControl},
                       {"normalized", false}});
    } else {
      vocab[token] = id;
    }
  }
  const auto* merges = metadata.strings("tokenizer.ggml.merges");
  if (merges == nullptr) metadata.refuse_missing("tokenizer.ggml.merges", "the merges of BPE");
  for (const std::string& merge : *merges) checked_utf8(metadata, "tokenizer.ggml.merges", merge);

  Json json = {{"added_tokens", std::move(added)},
               {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", kind.steps()}}},
               {"decoder", {{"type", "ByteLevel"}}},
               {"model",
                {{"type", "BPE"},
                 {"ignore_merges", kind.ignore_merges},
                 {"vocab", std::move(vocab)},
                 {"merges", *merges}}}};
  if (kind.nfc) json["normalizer"] = {{"type", "NFC"}};
  return json;
}

Json gguf_tokenizer_config_json(const GgufMetadata& metadata) {
  const std::vector<std::string>& tokens = tokens_of(metadata);
  Json json = Json::object();
  const auto bos = token_of(metadata, "tokenizer.ggml.bos_token_id", tokens);
  const auto eos = token_of(metadata, "tokenizer.ggml.eos_token_id", tokens);
  if (bos) json["bos_token"] = *bos;
  if (eos) json["eos_token"] = *eos;
  const bool adds_bos = pre_tokenizer_kind(metadata).adds_bos && bos.has_value();
  json["add_bos_token"] = metadata.flag("tokenizer.ggml.add_bos_token").value_or(adds_bos);
  json["add_eos_token"] = metadata.flag("tokenizer.ggml.add_eos_token").value_or(false);

  constexpr const char* kTemplate = "tokenizer.chat_template";
  const std::string* only = metadata.text(kTemplate);
  if (only != nullptr) json["chat_template"] = checked_utf8(metadata, kTemplate, *only);
  const auto* names = metadata.strings("tokenizer.chat_templates");
  if (names == nullptr || names->empty()) return json;
  Json list = Json::array();
  if (only != nullptr) list.push_back({{"name", "default"}, {"template", *only}});
  for (const std::string& name : *names) {
    const std::string key = kTemplate + ("." + name);
    const std::string* text = metadata.text(key);
    if (text == nullptr) metadata.refuse_missing(key, "tokenizer.chat_templates names it");
    list.push_back({{"name", checked_utf8(metadata, "tokenizer.chat_templates", name)},
                    {"template", checked_utf8(metadata, key, *text)}});
  }
  json["chat_template"] = std::move(list);
  return json;
}

}  // namespace shoal
