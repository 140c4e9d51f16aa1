// Byte-level BPE tokenizers as Hugging Face's tokenizer.json describes them (the DeepSeek, Llama 3
// and Qwen families): the same ids as the Hugging Face tokenizers library. A component of the file
// that is not supported is refused by name when the file is loaded, never ignored. Immutable after
// construction; every const method may be called from any number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/added_tokens.h"
#include "runtime/text/bpe.h"
#include "runtime/text/pre_tokenizer.h"

namespace shoal {

struct EncodeOptions {
  // Add what the post-processor adds, such as the beginning-of-sequence token. Off for the text of
  // a chat template, which writes these itself.
  bool add_special_tokens = true;
  // Take the spelling of a special token in the text for that token. Off, it is ordinary text;
  // added tokens that are not special (such as <think>) are found either way. This is Hugging
  // Face's split_special_tokens, inverted.
  bool parse_special = true;
};

class Tokenizer {
 public:
  // From the text of tokenizer.json. Throws InvalidInput; `name` stands for the file in messages.
  static Tokenizer FromJson(std::string_view json, std::string_view name = "tokenizer.json");
  // From a tokenizer.json.
  static Tokenizer FromFile(const std::string& path);
  // From a checkpoint folder: tokenizer.json, and tokenizer_config.json if there is one, which
  // names the bos and eos tokens and may ask for them to be added (add_bos_token, add_eos_token) or
  // not. Or from the metadata of a GGUF file.
  static Tokenizer FromCheckpoint(const std::string& directory);

  // Each maximal invalid subpart of ill-formed UTF-8 counts as one U+FFFD, as if the text had been
  // decoded by Python with errors="replace". Throws InvalidInput only for a text whose splitting
  // exceeds the limits of the regular expressions.
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  // Valid UTF-8: bytes that are not become U+FFFD. Ids outside the vocabulary give no text, because
  // a model's embedding may have more rows than its tokenizer has tokens.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const;

  // The spelling in tokenizer.json; nothing if there is no such token.
  std::optional<std::string_view> id_to_token(int32_t id) const;
  std::optional<int32_t> token_to_id(std::string_view token) const;
  // Added tokens included. Ids are 0 to vocab_size() - 1, without holes.
  int32_t vocab_size() const { return static_cast<int32_t>(tokens_.size()); }

  // The bytes that a token stands for; empty outside the vocabulary.
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;

  // From tokenizer_config.json; nothing unless it names one (always so after FromFile and
  // FromJson).
  std::optional<int32_t> bos_id() const { return bos_id_; }
  std::optional<int32_t> eos_id() const { return eos_id_; }

 private:
  struct Token {
    std::string spelling;
    std::string bytes;
    bool special = false;
    bool present = false;
  };
  // State of one encode() call.
  struct Encoding;

  static Tokenizer FromGguf(const std::string& path);
  explicit Tokenizer(const nlohmann::json& json);
  void load_normalizer(const nlohmann::json& json, const std::string& where);
  void load_decoder(const nlohmann::json& json) const;
  void load_vocab(const std::vector<AddedToken>& added);
  void load_added_tokens(const std::vector<AddedToken>& added);
  void load_post_processor(const nlohmann::json& json, const std::string& where);
  void apply_config(const nlohmann::json& config);
  std::optional<int32_t> config_token(const nlohmann::json& config, const char* key) const;

  void encode_text(std::string_view text, Encoding* encoding) const;
  void encode_word(std::string_view word, Encoding* encoding) const;

  bool nfc_ = false;
  PreTokenizer pre_tokenizer_;
  BpeModel model_;
  AddedTokenMatcher raw_added_;         // looked for in the text as given
  AddedTokenMatcher normalized_added_;  // looked for in the normalized rest
  std::vector<Token> tokens_;           // by id
  TokenMap added_ids_;
  std::vector<int32_t> prefix_;  // what add_special_tokens puts before and after
  std::vector<int32_t> suffix_;
  std::optional<int32_t> bos_id_;
  std::optional<int32_t> eos_id_;
};

}  // namespace shoal
