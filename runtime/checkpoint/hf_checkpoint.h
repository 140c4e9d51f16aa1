// HfCheckpoint: a folder in Hugging Face's layout: model.safetensors, or model.safetensors.index.json
// with its shards, and config.json, whose quantization_config says how weights are packed.
#pragma once

#include <map>
#include <optional>
#include <string_view>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/tensor_ref.h"
#include "runtime/model/quantization_config.h"

namespace shoal {

class HfCheckpoint : public Checkpoint {
 public:
  // With an index: its file names are plain names of this folder, every named tensor is in the
  // shard that the index says and in no other, and every tensor of a shard is named. Other files of
  // the folder are not looked at. A symbolic link may lead to this folder or, in the Hugging Face
  // cache, to its blobs. Throws InvalidInput naming file and tensor.
  explicit HfCheckpoint(const std::string& dir);

  bool has(const std::string& name) const override { return weights_.count(name) > 0; }
  std::vector<std::string> names() const override;
  std::unique_ptr<StoredWeight> matrix(const std::string& name, int64_t n,
                                       int64_t k) const override;
  std::unique_ptr<StoredWeight> vector(const std::string& name, int64_t n) const override;
  std::vector<FileTensor> file_tensors() const override;
  std::string quantization() const override { return describe(quantization_); }
  const std::string& path() const override { return dir_; }
  size_t num_files() const override { return files_.size(); }
  uint64_t total_bytes() const override;

 private:
  void open_files(const std::string& given);
  void list_weights();
  // The tensor that holds the codes of a quantised matrix.
  std::optional<TensorRef> codes_of(const std::string& module) const;
  // The weight that the tensor called `name` is packed into or belongs to; itself when none.
  std::string weight_of(const std::string& name) const;
  std::optional<TensorRef> find(const std::string& name) const;
  TensorRef require(const std::string& name, const std::vector<int64_t>& shape) const;

  std::string dir_;
  QuantizationConfig quantization_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, TensorRef> tensors_;    // by their names in the files
  std::map<std::string, std::string> weights_;  // Hugging Face's name -> the tensor that stands for it
};

// The weight_map of an index: file name by tensor name, checked as far as text alone allows.
// `source` names the text in errors.
std::map<std::string, std::string> parse_checkpoint_index(std::string_view text,
                                                          const std::string& source);

}  // namespace shoal
