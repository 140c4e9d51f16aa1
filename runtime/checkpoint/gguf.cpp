#include "runtime/checkpoint/gguf.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

static_assert(std::endian::native == std::endian::little);

// Of metadata and tensor headers. The largest published tokenizers have some 30 MB; the bound keeps
// what a hostile file can make us hold small.
constexpr uint64_t kMaxHeaderBytes = uint64_t{128} << 20;
constexpr uint64_t kMaxKeyBytes = 65535;  // the specification's
constexpr uint64_t kMaxNameBytes = 64;    // of a tensor, too
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;

enum class ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

// Bytes of a number; 0 for strings and arrays. REQUIRES: a known type.
uint64_t value_bytes(ValueType type) {
  constexpr uint64_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kBytes[static_cast<uint32_t>(type)];
}

// The bytes of a header in order, through a buffer.
class Cursor {
 public:
  Cursor(const GgufBytes& bytes, uint64_t file_bytes, const std::string& source)
      : bytes_(bytes),
        limit_(std::min(file_bytes, kMaxHeaderBytes)),
        source_(source),
        large_(file_bytes > kMaxHeaderBytes) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return limit_ - position_; }

  void read(uint64_t count, void* out, const std::string& what) {
    if (count > left()) {
      throw_invalid("{}: {} needs {} bytes at byte {}, but {} has {}{}", source_, what, count,
                    position_, large_ ? "a header" : "the file", limit_,
                    large_ ? " at most" : ": truncated, or a length that is wrong");
    }
    auto* target = static_cast<char*>(out);
    while (count > 0) {
      if (position_ < buffer_begin_ || position_ >= buffer_begin_ + buffer_.size()) fill();
      const uint64_t at = position_ - buffer_begin_;
      const uint64_t n = std::min<uint64_t>(count, buffer_.size() - at);
      std::memcpy(target, buffer_.data() + at, n);
      target += n;
      position_ += n;
      count -= n;
    }
  }
  template <typename T>
  T number(const std::string& what) {
    T value;
    read(sizeof(T), &value, what);
    return value;
  }
  std::string text(uint64_t most, const std::string& what) {
    const auto length = number<uint64_t>(what);
    if (length > most) {
      throw_invalid("{}: {} has a length of {}, should be at most {}", source_, what, length, most);
    }
    if (length > left()) {
      throw_invalid("{}: {} has a length of {}, but only {} bytes are left", source_, what, length,
                    left());
    }
    std::string text(length, '\0');
    read(length, text.data(), what);
    return text;
  }

 private:
  void fill() {
    constexpr uint64_t kBufferBytes = uint64_t{256} << 10;
    buffer_begin_ = position_;
    buffer_.resize(std::min(kBufferBytes, left()));
    bytes_(buffer_begin_, buffer_begin_ + buffer_.size(), buffer_.data());
  }

  const GgufBytes& bytes_;
  const uint64_t limit_;
  const std::string& source_;
  const bool large_;
  std::string buffer_;
  uint64_t buffer_begin_ = 0;
  uint64_t position_ = 0;
};

// The double of the shortest decimal that reads back as `x`.
double shortest_decimal(float x) {
  if (!std::isfinite(x)) return x;
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), x).ptr;
  double value = 0;
  std::from_chars(text, end, value);
  return value;
}

}  // namespace

class GgufParser {
 public:
  GgufParser(const GgufBytes& bytes, uint64_t file_bytes, const std::string& source)
      : cursor_(bytes, file_bytes, source), file_bytes_(file_bytes), source_(source) {}

  GgufHeader parse() {
    header_.metadata.source_ = source_;
    magic();
    const auto num_tensors = cursor_.number<uint64_t>("the number of tensors");
    const auto num_keys = cursor_.number<uint64_t>("the number of keys");
    // What the shortest key and the shortest tensor header take.
    constexpr uint64_t kKeyBytes = 8 + 1 + 4 + 1, kTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;
    const auto bound = [&](const char* what, uint64_t count, uint64_t each) {
      if (count > cursor_.left() / each) {
        throw_invalid("{}: {} {} do not fit into the {} bytes that are left", source_, count, what,
                      cursor_.left());
      }
    };
    bound("keys", num_keys, kKeyBytes);
    for (uint64_t i = 0; i < num_keys; ++i) key(i);
    alignment();
    bound("tensors", num_tensors, kTensorBytes);
    for (uint64_t i = 0; i < num_tensors; ++i) tensor(i);
    place_tensors();
    return std::move(header_);
  }

 private:
  void magic() {
    char magic[4] = {};
    if (file_bytes_ < 24) {
      throw_invalid("{}: {} bytes are too few for a GGUF file", source_, file_bytes_);
    }
    cursor_.read(4, magic, "the beginning");
    if (std::string_view(magic, 4) == "vers") {
      throw_invalid("{}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
                    source_);
    }
    if (std::string_view(magic, 4) != "GGUF") {
      throw_invalid("{}: begins with {}, should be \"GGUF\"", source_,
                    in_quotes(std::string_view(magic, 4)));
    }
    const auto version = cursor_.number<uint32_t>("the version");
    if ((version & 0xffff) == 0) {
      throw_invalid("{}: a big-endian GGUF file; only little-endian ones are supported", source_);
    }
    if (version != 2 && version != 3) {
      throw_invalid("{}: GGUF version {}; supported are 2 and 3", source_, version);
    }
  }

  void key(uint64_t index) {
    const std::string name = cursor_.text(kMaxKeyBytes, fmt::format("key {}", index));
    if (name.empty()) throw_invalid("{}: key {} is an empty string", source_, index);
    const std::string what = "key " + in_quotes(name);
    GgufValue read = value(value_type(what), what);
    if (!header_.metadata.values_.emplace(name, std::move(read)).second) {
      throw_invalid("{}: {} is there twice", source_, what);
    }
  }

  ValueType value_type(const std::string& what) {
    const auto type = cursor_.number<uint32_t>(what);
    if (type > static_cast<uint32_t>(ValueType::kF64)) {
      throw_invalid("{}: {} has a value of type {}; GGUF has the types 0 to 12", source_, what,
                    type);
    }
    return static_cast<ValueType>(type);
  }

  GgufValue value(ValueType type, const std::string& what) {
    switch (type) {
      case ValueType::kU8: return int64_t{cursor_.number<uint8_t>(what)};
      case ValueType::kI8: return int64_t{cursor_.number<int8_t>(what)};
      case ValueType::kU16: return int64_t{cursor_.number<uint16_t>(what)};
      case ValueType::kI16: return int64_t{cursor_.number<int16_t>(what)};
      case ValueType::kU32: return int64_t{cursor_.number<uint32_t>(what)};
      case ValueType::kI32: return int64_t{cursor_.number<int32_t>(what)};
      case ValueType::kI64: return cursor_.number<int64_t>(what);
      case ValueType::kU64: {
        const auto n = cursor_.number<uint64_t>(what);
        if (n > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
          return static_cast<double>(n);
        }
        return static_cast<int64_t>(n);
      }
      case ValueType::kF32: return shortest_decimal(cursor_.number<float>(what));
      case ValueType::kF64: return cursor_.number<double>(what);
      case ValueType::kBool: {
        const auto b = cursor_.number<uint8_t>(what);
        if (b > 1) throw_invalid("{}: {} is a boolean of {}, should be 0 or 1", source_, what, b);
        return b == 1;
      }
      case ValueType::kString: return cursor_.text(kMaxHeaderBytes, what);
      case ValueType::kArray: return array(what);
    }
    SHOAL_CHECK(false, "value type {}", static_cast<uint32_t>(type));
  }

  GgufArray array(const std::string& what) {
    const ValueType type = value_type(what);
    if (type == ValueType::kArray) {
      throw_invalid("{}: {} is an array of arrays, which is not supported", source_, what);
    }
    const auto count = cursor_.number<uint64_t>(what);
    const uint64_t least = type == ValueType::kString ? 8 : value_bytes(type);
    if (count > cursor_.left() / least) {
      throw_invalid("{}: {} is an array of {}, but only {} bytes are left", source_, what, count,
                    cursor_.left());
    }
    GgufArray array;
    if (type == ValueType::kString) {
      for (uint64_t i = 0; i < count; ++i) {
        array.strings.push_back(cursor_.text(kMaxHeaderBytes, what));
      }
      return array;
    }
    array.element_bytes = value_bytes(type);
    array.floats = type == ValueType::kF32 || type == ValueType::kF64;
    array.is_signed = type == ValueType::kI8 || type == ValueType::kI16 ||
                      type == ValueType::kI32 || type == ValueType::kI64;
    array.numbers.resize(count * array.element_bytes);
    cursor_.read(array.numbers.size(), array.numbers.data(), what);
    return array;
  }

  void alignment() {
    const auto value = header_.metadata.integer("general.alignment");
    if (!value) return;
    if (*value < 8 || *value > static_cast<int64_t>(kMaxAlignment) ||
        !std::has_single_bit(static_cast<uint64_t>(*value))) {
      header_.metadata.refuse("general.alignment",
                              fmt::format("should be a power of two from 8 to {}", kMaxAlignment));
    }
    alignment_ = static_cast<uint64_t>(*value);
  }

  void tensor(uint64_t index) {
    const std::string name =
        cursor_.text(kMaxNameBytes, fmt::format("the name of tensor {}", index));
    const std::string what = "tensor " + in_quotes(name);
    GgufTensor tensor;
    const auto dimensions = cursor_.number<uint32_t>(what);
    if (dimensions < 1 || dimensions > kMaxDimensions) {
      throw_invalid("{}: {} has {} dimensions, should be 1 to {}", source_, what, dimensions,
                    kMaxDimensions);
    }
    uint64_t elements = 1;
    for (uint32_t d = 0; d < dimensions; ++d) {
      const auto size = cursor_.number<uint64_t>(what);
      if (size == 0 || __builtin_mul_overflow(elements, size, &elements) ||
          elements > uint64_t{1} << 48) {
        throw_invalid(
            "{}: {} has a dimension of {}; should be 1 or more, and all together hold at "
            "most 2^48 elements",
            source_, what, size);
      }
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
    }
    const auto type = cursor_.number<uint32_t>(what);
    tensor.type = find_ggml_type(type);
    if (tensor.type == nullptr) {
      throw_invalid(
          "{}: {} has the type {}; Shoal reads F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, "
          "Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K and IQ4_NL",
          source_, what, ggml_type_name(type));
    }
    if (tensor.shape.back() % tensor.type->block != 0) {
      throw_invalid("{}: {} is {}: rows of {} elements should be whole blocks of {}", source_, what,
                    tensor.shape_string(), tensor.shape.back(), tensor.type->block);
    }
    tensor.begin = cursor_.number<uint64_t>(what);  // relative until place_tensors()
    // At most 2^48 elements of 4 bytes: no overflow.
    tensor.end = elements / static_cast<uint64_t>(tensor.type->block) *
                 static_cast<uint64_t>(tensor.type->block_bytes);
    if (!header_.tensors.emplace(name, std::move(tensor)).second) {
      throw_invalid("{}: {} is there twice", source_, what);
    }
  }

  void place_tensors() {
    const uint64_t data = (cursor_.position() + alignment_ - 1) / alignment_ * alignment_;
    std::vector<std::pair<const GgufTensor*, const std::string*>> order;
    for (auto& [name, tensor] : header_.tensors) {
      const uint64_t offset = tensor.begin, bytes = tensor.end;
      if (offset % alignment_ != 0) {
        throw_invalid("{}: tensor {} has the offset {}, should be a multiple of {}", source_,
                      in_quotes(name), offset, alignment_);
      }
      if (data > file_bytes_ || offset > file_bytes_ - data ||
          bytes > file_bytes_ - data - offset) {
        throw_invalid(
            "{}: tensor {} of {} bytes at offset {} of the data, which begins at byte {}, "
            "ends beyond the file's {} bytes: truncated, or an offset that is wrong",
            source_, in_quotes(name), bytes, offset, data, file_bytes_);
      }
      tensor.begin = data + offset;
      tensor.end = tensor.begin + bytes;
      order.emplace_back(&tensor, &name);
    }
    std::sort(order.begin(), order.end(),
              [](const auto& a, const auto& b) { return a.first->begin < b.first->begin; });
    for (size_t i = 1; i < order.size(); ++i) {
      if (order[i].first->begin < order[i - 1].first->end) {
        throw_invalid("{}: tensors {} and {} overlap at byte {}", source_,
                      in_quotes(*order[i - 1].second), in_quotes(*order[i].second),
                      order[i].first->begin);
      }
    }
  }

  Cursor cursor_;
  const uint64_t file_bytes_;
  const std::string source_;
  uint64_t alignment_ = kDefaultAlignment;
  GgufHeader header_;
};

const GgmlType* find_ggml_type(uint32_t id) {
  using Id = GgmlType::Id;
  static constexpr GgmlType kTypes[] = {{Id::kF32, "F32", 1, 4},
                                        {Id::kF16, "F16", 1, 2},
                                        {Id::kBF16, "BF16", 1, 2},
                                        {Id::kQ4_0, "Q4_0", 32, 2 + 16},
                                        {Id::kQ4_1, "Q4_1", 32, 4 + 16},
                                        {Id::kQ5_0, "Q5_0", 32, 2 + 4 + 16},
                                        {Id::kQ5_1, "Q5_1", 32, 4 + 4 + 16},
                                        {Id::kQ8_0, "Q8_0", 32, 2 + 32},
                                        {Id::kQ2_K, "Q2_K", 256, 16 + 64 + 4},
                                        {Id::kQ3_K, "Q3_K", 256, 32 + 64 + 12 + 2},
                                        {Id::kQ4_K, "Q4_K", 256, 4 + 12 + 128},
                                        {Id::kQ5_K, "Q5_K", 256, 4 + 12 + 32 + 128},
                                        {Id::kQ6_K, "Q6_K", 256, 128 + 64 + 16 + 2},
                                        {Id::kIQ4_NL, "IQ4_NL", 32, 2 + 16}};
  for (const GgmlType& type : kTypes) {
    if (static_cast<uint32_t>(type.id) == id) return &type;
  }
  return nullptr;
}

std::string ggml_type_name(uint32_t id) {
  // By number; empty: never given out, or taken back.
  static constexpr std::string_view kNames[] = {
      "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
      "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
      "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
      "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
      "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
      "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4",    "NVFP4",    "Q1_0",
      "Q2_0"};
  return id < std::size(kNames) ? std::string(kNames[id]) : fmt::format("number {}", id);
}

int64_t GgufTensor::num_elements() const {
  int64_t n = 1;
  for (const int64_t dim : shape) n *= dim;
  return n;
}

std::string GgufTensor::shape_string() const {
  return fmt::format("{}[{}]", type->name, fmt::join(shape, ", "));
}

GgufHeader parse_gguf_header(const GgufBytes& bytes, uint64_t file_bytes,
                             const std::string& source) {
  return GgufParser(bytes, file_bytes, source).parse();
}

bool is_gguf(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0 || S_ISDIR(status.st_mode)) return false;
  if (path.ends_with(".gguf")) return true;
  if (!S_ISREG(status.st_mode) || status.st_size < 4) return false;
  char magic[4];
  InputFile::open(path)->read(0, 4, magic);
  return std::string_view(magic, 4) == "GGUF";
}

}  // namespace shoal
