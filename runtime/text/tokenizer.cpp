#include "runtime/text/tokenizer.h"

#include <algorithm>
#include <bit>
#include <deque>
#include <filesystem>

#include "kernels/base/error.h"
#include "runtime/text/byte_alphabet.h"
#include "runtime/text/gguf_tokenizer.h"
#include "runtime/text/json_input.h"
#include "runtime/text/unicode.h"

namespace shoal {
namespace {

const nlohmann::json& member_or_null(const nlohmann::json& object, const char* key) {
  static const nlohmann::json null;
  const auto it = object.find(key);
  return it == object.end() ? null : *it;
}

const nlohmann::json& require_document(const nlohmann::json& json) {
  JsonObject{json, ""};  // throws unless an object
  return json;
}

}  // namespace

// Where the ids of a word that came before stand in the output. Direct mapped: a word that hashes
// to the slot of another replaces it, so the memory is bounded and nothing is evicted by a list.
struct CachedWord {
  std::string_view word;
  size_t begin = 0;
  size_t count = 0;
};

struct Tokenizer::Encoding {
  explicit Encoding(size_t text_bytes)
      // About one slot per word of a short text, and no more than fit a core's second-level cache.
      : cache(std::bit_ceil(std::clamp<size_t>(text_bytes / 8, 1, 8192))) {}

  PreTokenizerScratch pre_tokenizer;
  BpeScratch bpe;
  std::deque<std::string> normalized;  // what the cached words refer to, besides the text
  std::vector<CachedWord> cache;
  std::vector<int32_t> ids;
};

Tokenizer Tokenizer::FromJson(std::string_view json, std::string_view name) {
  const nlohmann::json document = parse_json(json, name);
  try {
    return Tokenizer(document);
  } catch (const InvalidInput& error) {
    throw_invalid("{}: {}", name, error.what());
  }
}

Tokenizer Tokenizer::FromFile(const std::string& path) {
  return FromJson(read_text_file(path), path);
}

Tokenizer Tokenizer::FromGguf(const std::string& path) {
  const auto model = GgufModel::open(path);
  const nlohmann::json document = gguf_tokenizer_json(model->metadata());
  const nlohmann::json config = gguf_tokenizer_config_json(model->metadata());
  try {
    Tokenizer tokenizer(document);
    tokenizer.apply_config(config);
    return tokenizer;
  } catch (const InvalidInput& error) {
    throw_invalid("{}, its metadata as tokenizer.json: {}", path, error.what());
  }
}

Tokenizer Tokenizer::FromCheckpoint(const std::string& directory) {
  if (is_gguf(directory)) return FromGguf(directory);
  const std::filesystem::path folder(directory);
  Tokenizer tokenizer = FromFile((folder / "tokenizer.json").string());
  const std::string config_path = (folder / "tokenizer_config.json").string();
  if (std::filesystem::exists(config_path)) {
    const nlohmann::json config = parse_json(read_text_file(config_path), config_path);
    try {
      tokenizer.apply_config(config);
    } catch (const InvalidInput& error) {
      throw_invalid("{}: {}", config_path, error.what());
    }
  }
  return tokenizer;
}

Tokenizer::Tokenizer(const nlohmann::json& json)
    : pre_tokenizer_(member_or_null(require_document(json), "pre_tokenizer")),
      model_(JsonObject(json, "").require("model"), pre_tokenizer_.byte_level()) {
  const auto& normalizer = member_or_null(json, "normalizer");
  if (!normalizer.is_null()) load_normalizer(normalizer, "normalizer");
  load_decoder(member_or_null(json, "decoder"));
  const auto added = parse_added_tokens(member_or_null(json, "added_tokens"));
  load_vocab(added);
  load_added_tokens(added);
  const auto& post_processor = member_or_null(json, "post_processor");
  if (!post_processor.is_null()) load_post_processor(post_processor, "post_processor");
}

void Tokenizer::load_normalizer(const nlohmann::json& json, const std::string& where) {
  const JsonObject object(json, where);
  const std::string type = object.require_string("type");
  if (type == "Sequence") {
    const auto& members = object.require_array("normalizers");
    for (size_t i = 0; i < members.size(); ++i) {
      load_normalizer(members[i], fmt::format("{}.normalizers[{}]", where, i));
    }
  } else if (type == "NFC") {
    nfc_ = true;
  } else {
    throw_invalid("{}: type {} is not supported (supported: Sequence, NFC)", where, type);
  }
}

void Tokenizer::load_decoder(const nlohmann::json& json) const {
  if (!pre_tokenizer_.byte_level()) {
    throw_invalid("pre_tokenizer has no ByteLevel step; only byte-level BPE is supported");
  }
  const std::string type = JsonObject(json, "decoder").require_string("type");
  if (type != "ByteLevel") {
    throw_invalid("decoder: type {} is not supported (supported: ByteLevel)", type);
  }
}

void Tokenizer::load_vocab(const std::vector<AddedToken>& added) {
  size_t count = model_.vocab().size();
  for (const AddedToken& token : added) count += model_.vocab().contains(token.content) ? 0 : 1;
  tokens_.resize(count);
  const auto place = [&](const std::string& spelling, int32_t id) -> Token& {
    // With as many ids as tokens, an id past the end means that another is missing.
    if (static_cast<size_t>(id) >= count) {
      throw_invalid("token \"{}\" has id {}, but there are only {} tokens: ids must have no holes",
                    spelling, id, count);
    }
    Token& token = tokens_[static_cast<size_t>(id)];
    if (token.present) {
      throw_invalid("tokens \"{}\" and \"{}\" have the same id {}", token.spelling, spelling, id);
    }
    token.present = true;
    token.spelling = spelling;
    token.bytes = alphabet_to_bytes(spelling).value_or(spelling);
    return token;
  };
  for (const auto& [spelling, id] : model_.vocab()) place(spelling, id);
  for (const AddedToken& token : added) {
    if (const auto id = model_.token_to_id(token.content); !id) {
      place(token.content, token.id);
    } else if (*id != token.id) {
      throw_invalid("added token \"{}\" has id {}, but model.vocab gives it {}", token.content,
                    token.id, *id);
    }
    tokens_[static_cast<size_t>(token.id)].special |= token.special;
  }
}

void Tokenizer::load_added_tokens(const std::vector<AddedToken>& added) {
  for (const AddedToken& token : added) {
    if (!added_ids_.emplace(token.content, token.id).second) {
      throw_invalid("added token \"{}\" is there twice", token.content);
    }
    if (token.normalized) {
      normalized_added_.add(nfc_ ? normalize_nfc(token.content) : token.content, token);
    } else {
      raw_added_.add(token.content, token);
    }
  }
  raw_added_.prepare();
  normalized_added_.prepare();
}

void Tokenizer::load_post_processor(const nlohmann::json& json, const std::string& where) {
  const JsonObject object(json, where);
  const std::string type = object.require_string("type");
  if (type == "ByteLevel") return;  // it only moves offsets
  if (type == "Sequence") {
    const auto& members = object.require_array("processors");
    for (size_t i = 0; i < members.size(); ++i) {
      load_post_processor(members[i], fmt::format("{}.processors[{}]", where, i));
    }
    return;
  }
  if (type != "TemplateProcessing") {
    throw_invalid(
        "{}: type {} is not supported (supported: ByteLevel, Sequence, TemplateProcessing)", where,
        type);
  }
  if (!prefix_.empty() || !suffix_.empty()) {
    throw_invalid("{}: a second TemplateProcessing is not supported", where);
  }
  const JsonObject specials(object.require("special_tokens"), object.path("special_tokens"));
  const auto& single = object.require_array("single");
  bool after_text = false;
  for (size_t i = 0; i < single.size(); ++i) {
    const JsonObject part(single[i], fmt::format("{}.single[{}]", where, i));
    if (part.find("Sequence") != nullptr) {
      if (after_text) throw_invalid("{}: the text twice is not supported", part.where());
      after_text = true;
      continue;
    }
    const JsonObject special(part.require("SpecialToken"), part.path("SpecialToken"));
    const std::string name = special.require_string("id");
    const JsonObject entry(specials.require(name.c_str()), specials.path(name));
    for (const auto& id : entry.require_array("ids")) {
      const int32_t value = require_token_id(id, entry.path("ids"));
      if (value >= vocab_size()) {
        throw_invalid("{} has {}, but there are only {} tokens", entry.path("ids"), value,
                      vocab_size());
      }
      (after_text ? suffix_ : prefix_).push_back(value);
    }
  }
  if (!after_text) throw_invalid("{}.single has no Sequence", where);
}

std::optional<int32_t> Tokenizer::config_token(const nlohmann::json& config,
                                               const char* key) const {
  const JsonObject object(config, "");
  const auto* member = object.find(key);
  if (member == nullptr) return std::nullopt;
  // A string, or an AddedToken written out as an object.
  const std::string content = member->is_object()
                                  ? JsonObject(*member, key).require_string("content")
                                  : object.require_string(key);
  const auto id = token_to_id(content);
  if (!id) throw_invalid("{} \"{}\" is not a token of tokenizer.json", key, content);
  return id;
}

void Tokenizer::apply_config(const nlohmann::json& config) {
  const JsonObject object(config, "");
  bos_id_ = config_token(config, "bos_token");
  eos_id_ = config_token(config, "eos_token");
  // An explicit choice in the configuration wins over the post-processor, whose file is often
  // written without it (DeepSeek-V3 asks for its bos only here).
  const auto apply = [&](const char* key, std::optional<int32_t> id, std::vector<int32_t>* ids) {
    if (object.find(key) == nullptr) return;
    ids->clear();
    if (!object.find_bool(key, false)) return;
    if (!id) throw_invalid("{} is true, but there is no such token", key);
    ids->push_back(*id);
  };
  apply("add_bos_token", bos_id_, &prefix_);
  apply("add_eos_token", eos_id_, &suffix_);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  Encoding encoding(text.size());
  // Ordinary text has four bytes per token and more; growth takes care of the rest.
  encoding.ids.reserve(text.size() / 4 + prefix_.size() + suffix_.size());
  if (options.add_special_tokens) encoding.ids = prefix_;

  std::vector<AddedTokenSplit> outer;
  std::vector<AddedTokenSplit> inner;
  raw_added_.split(text, options.parse_special, &outer);
  for (const AddedTokenSplit& stretch : outer) {
    if (stretch.id >= 0) {
      encoding.ids.push_back(stretch.id);
      continue;
    }
    std::string_view normalized = stretch.text;
    if (nfc_) normalized = encoding.normalized.emplace_back(normalize_nfc(stretch.text));
    inner.clear();
    normalized_added_.split(normalized, options.parse_special, &inner);
    for (const AddedTokenSplit& part : inner) {
      if (part.id >= 0) {
        encoding.ids.push_back(part.id);
      } else {
        encode_text(part.text, &encoding);
      }
    }
  }
  if (options.add_special_tokens) {
    encoding.ids.insert(encoding.ids.end(), suffix_.begin(), suffix_.end());
  }
  return std::move(encoding.ids);
}

void Tokenizer::encode_text(std::string_view text, Encoding* encoding) const {
  for (const std::string_view word : pre_tokenizer_.split(text, &encoding->pre_tokenizer)) {
    encode_word(word, encoding);
  }
}

void Tokenizer::encode_word(std::string_view word, Encoding* encoding) const {
  auto& ids = encoding->ids;
  CachedWord& cached = encoding->cache[StringHash()(word) & (encoding->cache.size() - 1)];
  if (cached.word == word && !word.empty()) {
    for (size_t i = 0; i < cached.count; ++i) ids.push_back(ids[cached.begin + i]);
    return;
  }
  const size_t begin = ids.size();
  model_.encode(word, &encoding->bpe, &ids);
  cached = {word, begin, ids.size() - begin};
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (skip_special_tokens && is_special(id)) continue;
    bytes += token_bytes(id);
  }
  return is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes);
}

std::optional<std::string_view> Tokenizer::id_to_token(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return std::nullopt;
  return tokens_[static_cast<size_t>(id)].spelling;
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  if (const auto it = added_ids_.find(token); it != added_ids_.end()) return it->second;
  return model_.token_to_id(token);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return tokens_[static_cast<size_t>(id)].bytes;
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && tokens_[static_cast<size_t>(id)].special;
}

}  // namespace shoal
