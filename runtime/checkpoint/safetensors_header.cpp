// The header of a safetensors file: parsing as a stream of events, so that a hostile header of the
// largest size costs no more memory than its tensors.
#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "kernels/base/error.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

// PyTorch allows more, but no weight of a supported model has more than two.
constexpr size_t kMaxDims = 8;

struct StoredType {
  std::string_view name;
  DType dtype;
};
constexpr std::array<StoredType, 8> kStoredTypes = {{{"F32", DType::kF32},
                                                     {"F16", DType::kF16},
                                                     {"BF16", DType::kBF16},
                                                     {"F8_E4M3", DType::kF8E4M3},
                                                     {"I64", DType::kI64},
                                                     {"I32", DType::kI32},
                                                     {"I8", DType::kI8},
                                                     {"U8", DType::kU8}}};

DType stored_type(const std::string& name, const std::string& source, const std::string& tensor) {
  for (const StoredType& type : kStoredTypes) {
    if (type.name == name) return type.dtype;
  }
  throw_invalid(
      "{}: tensor {} has the type {}; known are F32, F16, BF16, F8_E4M3, I64, I32, I8, U8", source,
      in_quotes(tensor), in_quotes(name));
}

// {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..,
//  "__metadata__": {"key": "value"}}
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(const std::string& source) : source_(source) {}

  struct Raw {
    std::optional<DType> dtype;
    std::optional<std::vector<uint64_t>> shape, data_offsets;
  };
  std::map<std::string, Raw> tensors;

  bool start_object(size_t) override {
    if (array_ != nullptr) reject("an object inside an array");
    if (depth_ == 1 && key_ == "__metadata__") {
      if (metadata_seen_) reject("__metadata__ twice");
      metadata_ = metadata_seen_ = true;
    } else if (depth_ == 1) {
      const auto [it, fresh] = tensors.try_emplace(key_);
      if (!fresh) reject(fmt::format("tensor {} twice", in_quotes(key_)));
      tensor_ = &*it;
    } else if (depth_ == 2) {
      reject(fmt::format("an object inside {}", current()));
    }
    ++depth_;
    return true;
  }

  bool end_object() override {
    --depth_;
    if (depth_ == 1) {
      metadata_ = false;
      metadata_keys_.clear();
      tensor_ = nullptr;
    }
    return true;
  }

  bool key(std::string& name) override {
    if (metadata_ && !metadata_keys_.insert(name).second) {
      reject(fmt::format("the key {} of __metadata__ twice", in_quotes(name)));
    }
    key_ = std::move(name);
    return true;
  }

  bool string(std::string& value) override {
    if (metadata_) return true;
    if (tensor_ == nullptr || key_ != "dtype" || array_ != nullptr) {
      reject(fmt::format("a string as {} of {}", in_quotes(key_), current()));
    }
    if (tensor_->second.dtype) reject(fmt::format("\"dtype\" of {} twice", current()));
    tensor_->second.dtype = stored_type(value, source_, tensor_->first);
    return true;
  }

  bool start_array(size_t) override {
    std::optional<std::vector<uint64_t>>* target = nullptr;
    if (tensor_ != nullptr && array_ == nullptr) {
      if (key_ == "shape") target = &tensor_->second.shape;
      if (key_ == "data_offsets") target = &tensor_->second.data_offsets;
    }
    if (target == nullptr) reject(fmt::format("an array as {} of {}", in_quotes(key_), current()));
    if (*target) reject(fmt::format("{} of {} twice", in_quotes(key_), current()));
    array_ = &target->emplace();
    return true;
  }

  bool end_array() override {
    array_ = nullptr;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (array_ == nullptr) reject(fmt::format("a number as {} of {}", in_quotes(key_), current()));
    if (array_->size() == kMaxDims) {
      reject(
          fmt::format("{} of {} has more than {} numbers", in_quotes(key_), current(), kMaxDims));
    }
    array_->push_back(value);
    return true;
  }

  bool number_integer(number_integer_t value) override {
    reject(fmt::format("the negative number {} in {}", value, current()));
  }
  bool number_float(number_float_t, const string_t&) override {
    reject(fmt::format("a number that is not an integer below 2^64 in {}", current()));
  }
  bool null() override { reject(fmt::format("null in {}", current())); }
  bool boolean(bool) override { reject(fmt::format("true or false in {}", current())); }
  bool binary(binary_t&) override { reject("binary data"); }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    throw_invalid("{}: the header is not valid JSON near byte {}", source_, position);
  }

 private:
  std::string current() const {
    if (metadata_) return "__metadata__";
    return tensor_ ? "tensor " + in_quotes(tensor_->first) : "the header";
  }
  [[noreturn]] void reject(const std::string& what) const {
    throw_invalid("{}: the header has {}", source_, what);
  }

  const std::string& source_;
  int depth_ = 0;
  bool metadata_ = false, metadata_seen_ = false;
  std::set<std::string> metadata_keys_;
  std::string key_;
  std::pair<const std::string, Raw>* tensor_ = nullptr;  // the object that is open
  std::vector<uint64_t>* array_ = nullptr;               // the array that is open
};

TensorInfo checked(const std::string& name, const HeaderHandler::Raw& raw, uint64_t data_begin,
                   uint64_t data_bytes, const std::string& source) {
  const std::string shown = in_quotes(name);
  if (!raw.dtype || !raw.shape || !raw.data_offsets) {
    throw_invalid("{}: tensor {} lacks {}", source, shown,
                  !raw.dtype   ? "\"dtype\""
                  : !raw.shape ? "\"shape\""
                               : "\"data_offsets\"");
  }
  if (raw.data_offsets->size() != 2) {
    throw_invalid("{}: tensor {} has {} data_offsets, should be 2", source, shown,
                  raw.data_offsets->size());
  }
  const uint64_t begin = (*raw.data_offsets)[0], end = (*raw.data_offsets)[1];
  if (begin > end || end > data_bytes) {
    throw_invalid("{}: tensor {} lies at bytes [{}, {}) of {} bytes of data", source, shown, begin,
                  end, data_bytes);
  }
  // Also when another dimension is 0: a product that wraps must not pass for an empty tensor.
  constexpr auto kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  const auto element = static_cast<uint64_t>(dtype_size(*raw.dtype));
  uint64_t bytes = element, without_zeros = element;
  for (const uint64_t dim : *raw.shape) {
    if (dim > kMax || (dim > 0 && without_zeros > kMax / dim)) {
      throw_invalid("{}: the shape of tensor {} overflows", source, shown);
    }
    bytes *= dim;
    if (dim > 0) without_zeros *= dim;
  }
  if (bytes != end - begin) {
    throw_invalid("{}: tensor {} has {} bytes, its type and shape say {}", source, shown,
                  end - begin, bytes);
  }
  if (begin % element != 0) {
    throw_invalid("{}: tensor {} is misaligned: it begins at byte {}, should be a multiple of {}",
                  source, shown, begin, element);
  }
  TensorInfo info;
  info.dtype = *raw.dtype;
  info.shape.assign(raw.shape->begin(), raw.shape->end());
  info.begin = data_begin + begin;
  info.end = data_begin + end;
  return info;
}

void check_coverage(const std::map<std::string, TensorInfo>& tensors, uint64_t data_begin,
                    uint64_t file_bytes, const std::string& source) {
  std::vector<const std::pair<const std::string, TensorInfo>*> sorted;
  sorted.reserve(tensors.size());
  for (const auto& entry : tensors) sorted.push_back(&entry);
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  uint64_t covered = data_begin;
  const std::string* previous = nullptr;
  for (const auto* entry : sorted) {
    const auto& [name, info] = *entry;
    if (info.begin < covered) {
      throw_invalid("{}: tensors {} and {} overlap", source, in_quotes(*previous), in_quotes(name));
    }
    if (info.begin > covered) {
      throw_invalid("{}: {} bytes before tensor {} belong to no tensor", source,
                    info.begin - covered, in_quotes(name));
    }
    covered = info.end;
    previous = &name;
  }
  if (covered != file_bytes) {
    throw_invalid("{}: {} bytes at the end belong to no tensor", source, file_bytes - covered);
  }
}

}  // namespace

int64_t TensorInfo::num_elements() const {
  return static_cast<int64_t>(num_bytes()) / dtype_size(dtype);
}

std::string TensorInfo::shape_string() const {
  return fmt::format("{}[{}]", dtype_name(dtype), fmt::join(shape, ", "));
}

std::map<std::string, TensorInfo> parse_safetensors_header(std::string_view header,
                                                           uint64_t file_bytes,
                                                           const std::string& source) {
  if (file_bytes < 8 || header.size() > file_bytes - 8) {
    throw_invalid("{}: a header of {} bytes in a file of {}", source, header.size(), file_bytes);
  }
  if (header.empty() || header.front() != '{') {
    throw_invalid("{}: the header does not begin with '{{'", source);
  }
  HeaderHandler handler(source);
  if (!nlohmann::json::sax_parse(header.begin(), header.end(), &handler)) {
    throw_invalid("{}: the header is not valid JSON", source);
  }
  const uint64_t data_begin = 8 + header.size();
  std::map<std::string, TensorInfo> tensors;
  for (const auto& [name, raw] : handler.tensors) {
    tensors.emplace(name, checked(name, raw, data_begin, file_bytes - data_begin, source));
  }
  check_coverage(tensors, data_begin, file_bytes, source);
  return tensors;
}

}  // namespace shoal
