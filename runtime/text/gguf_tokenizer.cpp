#include "runtime/text/gguf_tokenizer.h"

#include <unordered_map>

#include "kernels/base/error.h"
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
          split("\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-"
                "ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
                "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"),
          split("\\s?[!-/:-~！-／：-～‘-‟　-。]+"), split("\\s+$"), split("[一-龥ࠀ-一가-퟿]+"), digits(),
          byte_level(false)};
}
Json deepseek_coder() {
  return {split("[\r\n]"),         split("\\s?\\p{L}+"), split("\\s?\\p{P}+"),
          split("[一-龥ࠀ-一가-퟿]+"), digits(),            byte_level(false)};
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
constexpr PreTokenizerKind kKinds[] = {
    {"llama-bpe", llama3, true, false, true}, {"llama-v3", llama3, true, false, true},
    {"llama3", llama3, true, false, true},    {"qwen2", qwen2, false, true},
    {"deepseek-r1-qwen", qwen2, false, true}, {"deepseek-llm", deepseek_llm},
    {"deepseek-coder", deepseek_coder},       {"deepseek-v3", deepseek_v3},
    {"smollm", smollm},                       {"gpt-2", gpt2}};

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

// Nothing for a key that is absent or says "none" (-1).
std::optional<std::string> token_of(const GgufMetadata& metadata, const std::string& key,
                                    const std::vector<std::string>& tokens) {
  const auto id = metadata.integer(key);
  if (!id || *id == -1 || *id == 0xffffffff) return std::nullopt;
  if (*id < 0 || *id >= static_cast<int64_t>(tokens.size())) {
    metadata.refuse(key, fmt::format("there are {} tokens", tokens.size()));
  }
  return tokens[static_cast<size_t>(*id)];
}

std::string checked_utf8(const GgufMetadata& metadata, const std::string& key,
                         const std::string& text) {
  if (!is_valid_utf8(text)) {
    throw_invalid("{}: key {} holds {}, which is not valid UTF-8", metadata.source(), in_quotes(key),
                  in_quotes(text));
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
