// ConfigFields: the members of one JSON object of a config file, each read once with its range.
// What nobody asked for is refused by name at the end, so that no field is ever ignored by
// accident.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace shoal {

// Not thread-safe. `object` must outlive it. Every failure is InvalidInput naming file, field,
// value and what would be right. In Hugging Face's files null means absent; so it does here.
class ConfigFields {
 public:
  // `source`: the file; `prefix`: where in it the object is ("rope_scaling."). Throws unless an
  // object.
  ConfigFields(const nlohmann::json& object, std::string source, std::string prefix = "");

  bool has(const std::string& name) const;
  const nlohmann::json* find(const std::string& name);
  const nlohmann::json& require(const std::string& name);

  int64_t integer(const std::string& name, int64_t low, int64_t high,
                  std::optional<int64_t> fallback = std::nullopt);
  double number(const std::string& name, double low, double high,
                std::optional<double> fallback = std::nullopt);
  bool flag(const std::string& name, std::optional<bool> fallback = std::nullopt);
  std::string text(const std::string& name, std::optional<std::string> fallback = std::nullopt);

  // One token id or a list of them, below `vocab_size`; empty when absent.
  std::vector<int32_t> token_ids(const std::string& name, int64_t vocab_size);

  // A field whose other values would change the result: absent, or exactly `value`.
  void only(const std::string& name, const nlohmann::json& value);
  // Fields that do not change the result.
  void ignore(std::initializer_list<const char*> names);
  // REQUIRES: every known field was asked for or ignored.
  void refuse_unknown() const;

  // "config.json: rope_scaling.type is "dynamic"; <right>".
  [[noreturn]] void refuse(const std::string& name, const std::string& right) const;
  const std::string& source() const { return source_; }

 private:
  const nlohmann::json& object_;
  std::string source_, prefix_;
  std::set<std::string> known_;
};

}  // namespace shoal
