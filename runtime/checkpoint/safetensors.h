// Safetensors files and folders, read only. A file from outside is hostile until validated: every
// offset, size and shape is checked before memory is touched; errors are InvalidInput naming file and
// tensor. Rules: ../docs/architecture.md, "Loader".
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"

namespace shoal {

struct TensorInfo {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // byte offsets in the file, absolute
  uint64_t end = 0;
  int64_t num_elements() const;
};

// Checks a header against the size of its file and returns its tensors by name.
// `header`: the JSON text; `file_bytes`: size of the whole file; `source` names it in errors.
std::map<std::string, TensorInfo> parse_safetensors_header(std::string_view header,
                                                           uint64_t file_bytes,
                                                           const std::string& source);

// One file, opened; reads are pread(), so a file that shrinks is an error and not a signal.
class SafetensorsFile {
 public:
  static std::unique_ptr<SafetensorsFile> open(const std::string& path);
  ~SafetensorsFile();
  const std::string& path() const { return path_; }
  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  // Thread-safe. REQUIRES: begin <= end inside the file.
  void read(uint64_t begin, uint64_t end, void* out) const;

 private:
  SafetensorsFile() = default;
  std::string path_;
  int fd_ = -1;
  std::map<std::string, TensorInfo> tensors_;
};

// A checkpoint folder: model.safetensors, or model.safetensors.index.json with its shards.
class Checkpoint {
 public:
  static Checkpoint open(const std::string& dir);

  struct Entry {
    const SafetensorsFile* file = nullptr;
    const TensorInfo* info = nullptr;
  };
  const std::map<std::string, Entry>& tensors() const { return tensors_; }
  const Entry* find(const std::string& name) const;  // null when absent
  const std::string& dir() const { return dir_; }
  uint64_t total_bytes() const;

 private:
  std::string dir_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> tensors_;
};

}  // namespace shoal
