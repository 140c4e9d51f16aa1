// A checkpoint folder in Hugging Face's layout: model.safetensors, or model.safetensors.index.json
// with its shards. Opening reads headers only. Immutable once open: any thread may read.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/checkpoint/safetensors.h"

namespace shoal {

class Checkpoint {
 public:
  // With an index: its file names are plain names of this folder, every named tensor is in the
  // shard that the index says and in no other, and every tensor of a shard is named. Other files of
  // the folder are not looked at. A symbolic link may lead to this folder or, in the Hugging Face
  // cache, to its blobs. Throws InvalidInput naming file and tensor.
  static Checkpoint open(const std::string& dir);

  struct Entry {
    const SafetensorsFile* file = nullptr;
    const TensorInfo* info = nullptr;
  };
  const std::map<std::string, Entry>& tensors() const { return tensors_; }
  const Entry* find(const std::string& name) const;  // null when absent
  const std::string& dir() const { return dir_; }
  size_t num_files() const { return files_.size(); }
  uint64_t total_bytes() const;  // of all tensors

 private:
  std::string dir_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> tensors_;
};

// The weight_map of an index: file name by tensor name, checked as far as text alone allows.
// `source` names the text in errors.
std::map<std::string, std::string> parse_checkpoint_index(std::string_view text,
                                                          const std::string& source);

}  // namespace shoal
