// GGUF files (versions 2 and 3), the format of llama.cpp: metadata, tensor headers, tensors. Read
// only. A file from outside is hostile until validated: every count, length, offset and type is
// checked before memory is touched; errors are InvalidInput naming the file and the key or tensor.
//
// A file is: "GGUF", u32 version, u64 tensors, u64 keys; the keys (text, u32 type, value); the
// tensors (name, u32 dimensions, u64 each, the fastest first, u32 type, u64 offset); padding to
// general.alignment; the data. Numbers are little endian, text is u64 bytes and the bytes. What is
// checked: counts against the bytes that are left, no key or tensor twice, no array in an array,
// known types, 1 to 4 dimensions from 1, rows of whole blocks, no overflow in any product, offsets
// aligned, inside the file and without overlap.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/checkpoint/input_file.h"

namespace shoal {

// How a type of ggml stores numbers: blocks of `block` elements in `block_bytes` bytes.
struct GgmlType {
  enum class Id : uint32_t {
    kF32 = 0,
    kF16 = 1,
    kQ4_0 = 2,
    kQ4_1 = 3,
    kQ5_0 = 6,
    kQ5_1 = 7,
    kQ8_0 = 8,
    kQ2_K = 10,
    kQ3_K = 11,
    kQ4_K = 12,
    kQ5_K = 13,
    kQ6_K = 14,
    kIQ4_NL = 20,
    kBF16 = 30
  };
  Id id = Id::kF32;
  std::string_view name;
  int64_t block = 1;
  int64_t block_bytes = 4;
};

// Null for a type that Shoal does not read.
const GgmlType* find_ggml_type(uint32_t id);
// "IQ2_XS", or "number 99" for one that llama.cpp does not have either.
std::string ggml_type_name(uint32_t id);

struct GgufTensor {
  const GgmlType* type = nullptr;
  std::vector<int64_t> shape;  // [.., rows, columns]: the reverse of the file's order
  uint64_t begin = 0;          // byte offsets in the file, absolute
  uint64_t end = 0;
  int64_t num_elements() const;
  std::string shape_string() const;  // "Q4_K[4096, 512]"
};

struct GgufArray {
  bool floats = false;
  uint64_t element_bytes = 0;  // 0: strings
  bool is_signed = false;
  std::string numbers;  // as in the file
  std::vector<std::string> strings;
  uint64_t size() const {
    return element_bytes == 0 ? strings.size() : numbers.size() / element_bytes;
  }
  // REQUIRES: i < size(), integers or booleans.
  int64_t integer(uint64_t i) const;
};

// A float32 is kept as the shortest decimal that reads back as the same float32: 1e-6 and not
// 9.99999997e-7, as config.json would have it.
using GgufValue = std::variant<int64_t, double, bool, std::string, GgufArray>;

// The keys of a file. Null or nothing where a key is absent; InvalidInput naming file and key where
// it has another type.
class GgufMetadata {
 public:
  const std::string& source() const { return source_; }
  const std::map<std::string, GgufValue>& values() const { return values_; }
  bool has(const std::string& key) const { return values_.count(key) > 0; }
  std::optional<int64_t> integer(const std::string& key) const;
  std::optional<double> number(const std::string& key) const;  // of an integer too
  std::optional<bool> flag(const std::string& key) const;
  const std::string* text(const std::string& key) const;
  const std::vector<std::string>* strings(const std::string& key) const;
  const GgufArray* integers(const std::string& key) const;
  // "FILE: key "llama.block_count" is 7; <right>".
  [[noreturn]] void refuse(const std::string& key, const std::string& right) const;
  [[noreturn]] void refuse_missing(const std::string& key, const std::string& what) const;

 private:
  friend struct GgufHeader;
  friend class GgufParser;
  std::string source_;
  std::map<std::string, GgufValue> values_;
};

struct GgufHeader {
  GgufMetadata metadata;
  std::map<std::string, GgufTensor> tensors;
};

// Copies bytes [begin, end) of a file; only ever asked for bytes inside it.
using GgufBytes = std::function<void(uint64_t begin, uint64_t end, void* out)>;
// `source` names the file in errors.
GgufHeader parse_gguf_header(const GgufBytes& bytes, uint64_t file_bytes,
                             const std::string& source);

// A model: one file, or all parts of NAME-00001-of-0000N.gguf. Immutable once open, any thread may
// read.
class GgufModel {
 public:
  // `path`: the file, of a split model its first. Throws InvalidInput naming file, and key or
  // tensor.
  static std::unique_ptr<GgufModel> open(const std::string& path);

  struct Entry {
    const InputFile* file = nullptr;
    const GgufTensor* info = nullptr;
  };
  const std::string& path() const { return path_; }
  const GgufMetadata& metadata() const { return headers_.front().metadata; }
  const std::map<std::string, Entry>& tensors() const { return tensors_; }
  const Entry* find(const std::string& name) const;  // null when absent
  size_t num_files() const { return files_.size(); }
  uint64_t total_bytes() const;  // of all tensors

 private:
  std::string path_;
  std::vector<std::unique_ptr<InputFile>> files_;
  std::deque<GgufHeader> headers_;  // entries of tensors_ refer to it
  std::map<std::string, Entry> tensors_;
};

// Whether --model PATH means a GGUF file: no folder, and named *.gguf or beginning with "GGUF".
bool is_gguf(const std::string& path);

}  // namespace shoal
