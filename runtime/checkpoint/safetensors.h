// Safetensors files, read only. A file from outside is hostile until validated: every offset, size
// and shape is checked before memory is touched; errors are InvalidInput naming file and tensor.
//
// A file is: u64 little-endian length of the header, the header (JSON, padded with spaces), the
// data. What is checked (../../docs/architecture.md, "Loader"): header length against the file,
// JSON depth, no key twice, known type, at most 8 dimensions, no overflow in any product, begin <=
// end inside the data, end - begin equal to what type and shape say, begin a multiple of the
// element, and all tensors together cover the data without gap or overlap.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"
#include "runtime/checkpoint/input_file.h"

namespace shoal {

struct TensorInfo {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // byte offsets in the file, absolute
  uint64_t end = 0;
  int64_t num_elements() const;
  uint64_t num_bytes() const { return end - begin; }
  std::string shape_string() const;  // "float32[3, 64]"
};

// Checks a header against the size of its file and returns its tensors by name.
// `header`: the JSON text; `file_bytes`: size of the whole file; `source` names it in errors.
std::map<std::string, TensorInfo> parse_safetensors_header(std::string_view header,
                                                           uint64_t file_bytes,
                                                           const std::string& source);

// One file, opened.
class SafetensorsFile {
 public:
  static std::unique_ptr<SafetensorsFile> open(const std::string& path);
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return file_->path(); }
  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  // Thread-safe. REQUIRES: begin <= end inside the file. Throws InvalidInput when it shrank.
  void read(uint64_t begin, uint64_t end, void* out) const { file_->read(begin, end, out); }

 private:
  explicit SafetensorsFile(std::unique_ptr<InputFile> file) : file_(std::move(file)) {}
  std::unique_ptr<InputFile> file_;
  std::map<std::string, TensorInfo> tensors_;
};

}  // namespace shoal
