#include "runtime/model/config_fields.h"

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

// Plain ASCII, cut: a message is one line.
std::string shown(const nlohmann::json& value) {
  constexpr size_t kMaxShown = 80;
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return text;
}

}  // namespace

ConfigFields::ConfigFields(const nlohmann::json& object, std::string source, std::string prefix)
    : object_(object), source_(std::move(source)), prefix_(std::move(prefix)) {
  if (!object.is_object()) {
    throw_invalid("{}: {} is {}; should be an object", source_,
                  prefix_.empty() ? "the document" : prefix_.substr(0, prefix_.size() - 1),
                  shown(object));
  }
}

bool ConfigFields::has(const std::string& name) const {
  const auto it = object_.find(name);
  return it != object_.end() && !it->is_null();
}

const nlohmann::json* ConfigFields::find(const std::string& name) {
  known_.insert(name);
  return has(name) ? &object_.at(name) : nullptr;
}

const nlohmann::json& ConfigFields::require(const std::string& name) {
  const nlohmann::json* value = find(name);
  if (value == nullptr) throw_invalid("{}: {}{} is missing", source_, prefix_, name);
  return *value;
}

int64_t ConfigFields::integer(const std::string& name, int64_t low, int64_t high,
                              std::optional<int64_t> fallback) {
  if (find(name) == nullptr && fallback) return *fallback;
  const nlohmann::json& value = require(name);
  const bool fits =
      value.is_number_integer() &&
      !(value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(high)) &&
      value.get<int64_t>() >= low && value.get<int64_t>() <= high;
  if (!fits) refuse(name, fmt::format("should be an integer from {} to {}", low, high));
  return value.get<int64_t>();
}

double ConfigFields::number(const std::string& name, double low, double high,
                            std::optional<double> fallback) {
  if (find(name) == nullptr && fallback) return *fallback;
  const nlohmann::json& value = require(name);
  if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high)) {
    refuse(name, fmt::format("should be a number from {} to {}", low, high));
  }
  return value.get<double>();
}

bool ConfigFields::flag(const std::string& name, std::optional<bool> fallback) {
  if (find(name) == nullptr && fallback) return *fallback;
  const nlohmann::json& value = require(name);
  if (!value.is_boolean()) refuse(name, "should be true or false");
  return value.get<bool>();
}

std::string ConfigFields::text(const std::string& name, std::optional<std::string> fallback) {
  if (find(name) == nullptr && fallback) return *fallback;
  const nlohmann::json& value = require(name);
  if (!value.is_string()) refuse(name, "should be a string");
  return value.get<std::string>();
}

std::vector<int32_t> ConfigFields::token_ids(const std::string& name, int64_t vocab_size) {
  constexpr size_t kMaxIds = 64;
  const nlohmann::json* value = find(name);
  if (value == nullptr) return {};
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  if (list.size() > kMaxIds) refuse(name, fmt::format("should be at most {} token ids", kMaxIds));
  std::vector<int32_t> ids;
  for (const auto& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size)) {
      refuse(name, fmt::format("should be token ids from 0 to {}", vocab_size - 1));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void ConfigFields::only(const std::string& name, const nlohmann::json& value) {
  const nlohmann::json* found = find(name);
  if (found != nullptr && *found != value) {
    refuse(name, fmt::format("only {} is supported", shown(value)));
  }
}

void ConfigFields::ignore(std::initializer_list<const char*> names) {
  for (const char* name : names) known_.insert(name);
}

void ConfigFields::refuse_unknown() const {
  for (const auto& [name, value] : object_.items()) {
    if (known_.count(name) > 0 || value.is_null()) continue;
    throw_invalid(
        "{}: the field {} (with value {}) is not known here and could change the result; "
        "remove it if it does not",
        source_, in_quotes(prefix_ + name), shown(value));
  }
}

void ConfigFields::refuse(const std::string& name, const std::string& right) const {
  throw_invalid("{}: {}{} is {}; {}", source_, prefix_, name,
                has(name) ? shown(object_.at(name)) : "missing", right);
}

}  // namespace shoal
