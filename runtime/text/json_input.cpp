#include "runtime/text/json_input.h"

#include <filesystem>
#include <fstream>
#include <limits>

#include "kernels/base/error.h"

namespace shoal {
namespace {

template <typename Json>
Json parse_bounded(std::string_view text, std::string_view what) {
  if (text.size() > kMaxJsonBytes) {
    throw_invalid("{}: {} bytes of JSON; at most {} are read", what, text.size(), kMaxJsonBytes);
  }
  const auto bound_depth = [&](int depth, typename Json::parse_event_t, Json&) {
    if (depth > kMaxJsonDepth) {
      throw_invalid("{}: JSON nested deeper than {} levels", what, kMaxJsonDepth);
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), bound_depth);
  } catch (const nlohmann::json::exception& error) {
    throw_invalid("{}: not valid JSON: {}", what, error.what());
  }
}

}  // namespace

nlohmann::json parse_json(std::string_view text, std::string_view what) {
  return parse_bounded<nlohmann::json>(text, what);
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, std::string_view what) {
  return parse_bounded<nlohmann::ordered_json>(text, what);
}

std::string read_text_file(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    throw_invalid("{}: no such file, or not a regular file", path);
  }
  const auto size = std::filesystem::file_size(path, error);
  if (error) throw_invalid("{}: {}", path, error.message());
  if (size > kMaxJsonBytes) {
    throw_invalid("{}: {} bytes; at most {} are read", path, size, kMaxJsonBytes);
  }
  std::string text(size, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(text.data(), static_cast<std::streamsize>(size));
  if (!file || file.gcount() != static_cast<std::streamsize>(size)) {
    throw_invalid("{}: could not be read", path);
  }
  return text;
}

JsonObject::JsonObject(const nlohmann::json& value, std::string where)
    : value_(value), where_(std::move(where)) {
  if (!value.is_object()) {
    throw_invalid("{} is {}, should be an object", where_.empty() ? "the document" : where_,
                  value.type_name());
  }
}

std::string JsonObject::path(std::string_view key) const {
  return where_.empty() ? std::string(key) : fmt::format("{}.{}", where_, key);
}

const nlohmann::json* JsonObject::find(const char* key) const {
  const auto it = value_.find(key);
  return it == value_.end() || it->is_null() ? nullptr : &*it;
}

const nlohmann::json& JsonObject::require(const char* key) const {
  const auto* member = find(key);
  if (member == nullptr) throw_invalid("{} is missing", path(key));
  return *member;
}

std::optional<std::string> JsonObject::find_string(const char* key) const {
  const auto* member = find(key);
  if (member == nullptr) return std::nullopt;
  if (!member->is_string()) {
    throw_invalid("{} is {}, should be a string", path(key), member->type_name());
  }
  return member->get<std::string>();
}

std::string JsonObject::require_string(const char* key) const {
  auto text = find_string(key);
  if (!text) throw_invalid("{} is missing", path(key));
  return *std::move(text);
}

bool JsonObject::find_bool(const char* key, bool fallback) const {
  const auto* member = find(key);
  if (member == nullptr) return fallback;
  if (!member->is_boolean()) {
    throw_invalid("{} is {}, should be true or false", path(key), member->type_name());
  }
  return member->get<bool>();
}

const nlohmann::json& JsonObject::require_array(const char* key) const {
  const auto& member = require(key);
  if (!member.is_array()) {
    throw_invalid("{} is {}, should be an array", path(key), member.type_name());
  }
  return member;
}

int32_t require_token_id(const nlohmann::json& value, std::string_view where) {
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  // An unsigned value past 2^63 turns negative here and fails as well.
  if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > kLargest) {
    throw_invalid("{} is {}, should be a token id (an integer from 0 to {})", where,
                  value.is_primitive()
                      ? value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                      : value.type_name(),
                  kLargest);
  }
  return value.get<int32_t>();
}

}  // namespace shoal
