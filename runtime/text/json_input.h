// JSON from outside: bounded parsing, and field access whose errors name the field.
// Internal to runtime/text. Every failure is InvalidInput.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace shoal {

// The deepest tokenizer.json or tokenizer_config.json seen nests 8 levels; tool schemas of requests
// nest more. The bound keeps every recursive walk over a document shallow.
inline constexpr int kMaxJsonDepth = 100;
// Gemma's tokenizer.json, the largest published one, has 33 MB.
inline constexpr size_t kMaxJsonBytes = size_t{256} << 20;

// `what` names the document in messages, for example a file name.
nlohmann::json parse_json(std::string_view text, std::string_view what);
nlohmann::ordered_json parse_ordered_json(std::string_view text, std::string_view what);

// The whole file, at most kMaxJsonBytes.
std::string read_text_file(const std::string& path);

// Access to the members of one JSON object; `where` is its path in messages ("model",
// "added_tokens[3]").
class JsonObject {
 public:
  JsonObject(const nlohmann::json& value, std::string where);  // throws unless an object

  const std::string& where() const { return where_; }
  std::string path(std::string_view key) const;
  // Null and absent are the same: nullptr.
  const nlohmann::json* find(const char* key) const;
  const nlohmann::json& require(const char* key) const;

  std::string require_string(const char* key) const;
  std::optional<std::string> find_string(const char* key) const;
  bool find_bool(const char* key, bool fallback) const;
  const nlohmann::json& require_array(const char* key) const;

 private:
  const nlohmann::json& value_;
  std::string where_;
};

// A token id: an integer in [0, 2^31).
int32_t require_token_id(const nlohmann::json& value, std::string_view where);

}  // namespace shoal
