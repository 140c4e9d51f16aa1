#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "runtime/checkpoint/hf_checkpoint.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

constexpr int kMaxDepth = 8;

// A name of this very folder: nothing that leads elsewhere.
bool plain_file_name(std::string_view name) {
  constexpr std::string_view kSuffix = ".safetensors";
  return name.size() > kSuffix.size() && name.size() <= 255 && name.ends_with(kSuffix) &&
         name.find('/') == name.npos && name.find('\\') == name.npos &&
         name.find('\0') == name.npos;
}

// {"metadata": {..}, "weight_map": {"tensor": "file", ..}}: only weight_map is used.
class IndexHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit IndexHandler(const std::string& source) : source_(source) {}

  std::map<std::string, std::string> files;
  bool found = false;

  bool start_object(size_t) override {
    if (in_map()) not_a_file_name();
    if (depth_ == 1 && key_ == "weight_map") {
      if (found) throw_invalid("{}: \"weight_map\" twice", source_);
      found = inside_ = true;
    }
    return open();
  }
  bool end_object() override {
    if (--depth_ == 1) inside_ = false;
    return true;
  }
  bool start_array(size_t) override {
    if (in_map()) not_a_file_name();
    return open();
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(std::string& name) override {
    key_ = std::move(name);
    return true;
  }
  bool string(std::string& value) override {
    if (!in_map()) return scalar();
    if (!plain_file_name(value)) {
      throw_invalid(
          "{}: tensor {} is said to be in {}; a shard is a plain name of this folder that "
          "ends in .safetensors",
          source_, in_quotes(key_), in_quotes(value));
    }
    if (!files.emplace(key_, std::move(value)).second) {
      throw_invalid("{}: tensor {} twice", source_, in_quotes(key_));
    }
    return true;
  }
  bool null() override { return scalar(); }
  bool boolean(bool) override { return scalar(); }
  bool number_integer(number_integer_t) override { return scalar(); }
  bool number_unsigned(number_unsigned_t) override { return scalar(); }
  bool number_float(number_float_t, const string_t&) override { return scalar(); }
  bool binary(binary_t&) override { return scalar(); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    throw_invalid("{}: not valid JSON near byte {}", source_, position);
  }

 private:
  bool in_map() const { return inside_ && depth_ == 2; }
  bool open() {
    if (++depth_ > kMaxDepth) throw_invalid("{}: JSON nested deeper than {}", source_, kMaxDepth);
    return true;
  }
  bool scalar() const {
    if (in_map()) not_a_file_name();
    if (depth_ == 1 && key_ == "weight_map") {
      throw_invalid("{}: \"weight_map\" should be an object", source_);
    }
    return true;
  }
  [[noreturn]] void not_a_file_name() const {
    throw_invalid("{}: the file of tensor {} should be a string", source_, in_quotes(key_));
  }

  const std::string& source_;
  int depth_ = 0;
  bool inside_ = false;
  std::string key_;
};

}  // namespace

std::map<std::string, std::string> parse_checkpoint_index(std::string_view text,
                                                          const std::string& source) {
  IndexHandler handler(source);
  nlohmann::json::sax_parse(text.begin(), text.end(), &handler);
  if (!handler.found) throw_invalid("{}: has no \"weight_map\"", source);
  if (handler.files.empty()) throw_invalid("{}: \"weight_map\" names no tensor", source);
  return std::move(handler.files);
}

}  // namespace shoal
