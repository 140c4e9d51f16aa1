#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "runtime/checkpoint/gguf.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

std::string show(const GgufValue& value) {
  if (const auto* n = std::get_if<int64_t>(&value)) return fmt::format("{}", *n);
  if (const auto* x = std::get_if<double>(&value)) return fmt::format("{}", *x);
  if (const auto* b = std::get_if<bool>(&value)) return *b ? "true" : "false";
  if (const auto* text = std::get_if<std::string>(&value)) return in_quotes(*text);
  return fmt::format("an array of {}", std::get<GgufArray>(value).size());
}

const GgufValue* find(const std::map<std::string, GgufValue>& values, const std::string& key) {
  const auto it = values.find(key);
  return it == values.end() ? nullptr : &it->second;
}

}  // namespace

int64_t GgufArray::integer(uint64_t i) const {
  SHOAL_CHECK(element_bytes > 0 && !floats && i < size(), "element {} of {}", i, size());
  int64_t value = 0;
  std::memcpy(&value, numbers.data() + i * element_bytes, element_bytes);
  const int unused_bits = static_cast<int>(64 - 8 * element_bytes);
  if (is_signed)
    value = static_cast<int64_t>(static_cast<uint64_t>(value) << unused_bits) >> unused_bits;
  return value;
}

std::optional<int64_t> GgufMetadata::integer(const std::string& key) const {
  const GgufValue* value = find(values_, key);
  if (value == nullptr) return std::nullopt;
  if (const auto* n = std::get_if<int64_t>(value)) return *n;
  refuse(key, "should be an integer");
}

std::optional<double> GgufMetadata::number(const std::string& key) const {
  const GgufValue* value = find(values_, key);
  if (value == nullptr) return std::nullopt;
  if (const auto* n = std::get_if<int64_t>(value)) return static_cast<double>(*n);
  const auto* x = std::get_if<double>(value);
  if (x == nullptr || !std::isfinite(*x)) refuse(key, "should be a finite number");
  return *x;
}

std::optional<bool> GgufMetadata::flag(const std::string& key) const {
  const GgufValue* value = find(values_, key);
  if (value == nullptr) return std::nullopt;
  if (const auto* b = std::get_if<bool>(value)) return *b;
  refuse(key, "should be a boolean");
}

const std::string* GgufMetadata::text(const std::string& key) const {
  const GgufValue* value = find(values_, key);
  if (value == nullptr) return nullptr;
  if (const auto* text = std::get_if<std::string>(value)) return text;
  refuse(key, "should be a string");
}

const std::vector<std::string>* GgufMetadata::strings(const std::string& key) const {
  const GgufValue* value = find(values_, key);
  if (value == nullptr) return nullptr;
  const auto* array = std::get_if<GgufArray>(value);
  if (array == nullptr || array->element_bytes != 0) refuse(key, "should be an array of strings");
  return &array->strings;
}

const GgufArray* GgufMetadata::integers(const std::string& key) const {
  const GgufValue* value = find(values_, key);
  if (value == nullptr) return nullptr;
  const auto* array = std::get_if<GgufArray>(value);
  if (array == nullptr || array->element_bytes == 0 || array->floats) {
    refuse(key, "should be an array of integers");
  }
  return array;
}

void GgufMetadata::refuse(const std::string& key, const std::string& right) const {
  const GgufValue* value = find(values_, key);
  throw_invalid("{}: key {} is {}; {}", source_, in_quotes(key),
                value == nullptr ? "missing" : show(*value), right);
}

void GgufMetadata::refuse_missing(const std::string& key, const std::string& what) const {
  throw_invalid("{}: key {} is missing: {}", source_, in_quotes(key), what);
}

}  // namespace shoal
