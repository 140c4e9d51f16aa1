// GgufCheckpoint: the weights of a GGUF file under Hugging Face's names, for the architectures of
// gguf_config.h. What llama.cpp's converter did to them is undone: rows of llama's q and k
// permuted, experts stacked, kv_b_proj split and transposed.
#pragma once

#include <map>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/gguf_weight.h"
#include "runtime/model/model_config.h"

namespace shoal {

class GgufCheckpoint : public Checkpoint {
 public:
  // Throws InvalidInput naming file, and key or tensor.
  explicit GgufCheckpoint(const std::string& path);

  bool has(const std::string& name) const override { return sources_.count(name) > 0; }
  std::vector<std::string> names() const override;
  // A quantised router is dequantised, as is a kv_b_proj in two parts.
  std::unique_ptr<StoredWeight> matrix(const std::string& name, int64_t n,
                                       int64_t k) const override;
  std::unique_ptr<StoredWeight> vector(const std::string& name, int64_t n) const override;
  std::vector<FileTensor> file_tensors() const override;
  std::string quantization() const override;  // "GGUF: F32, Q4_1"
  const std::string& path() const override { return model_->path(); }
  size_t num_files() const override { return model_->num_files(); }
  uint64_t total_bytes() const override { return model_->total_bytes(); }

 private:
  struct Source {
    std::string name;     // of the tensor
    int64_t heads = 0;    // whose halves are to be put apart again
    int64_t expert = -1;  // slice of the first dimension; -1: the whole tensor
    int64_t half = -1;    // of a slice's rows: 0 gate, 1 up
    std::string v_b;      // the second tensor of kv_b_proj
    bool as_f32 = false;
  };
  void add(std::string name, Source source);
  void add_tensor(const std::string& name, const GgufTensor& tensor);
  void add_experts(const std::string& layer, const std::string& part, const std::string& name,
                   const GgufTensor& tensor);
  const Source& require(const std::string& name, const std::vector<int64_t>& shape) const;
  // The rows of a tensor that has to have the shape [.., n, k].
  GgufRows rows(const std::string& name, const std::vector<int64_t>& shape) const;
  std::unique_ptr<StoredWeight> kv_b(const Source& source, int64_t n, int64_t k) const;

  std::unique_ptr<GgufModel> model_;
  ModelConfig config_;
  std::map<std::string, Source> sources_;  // by Hugging Face's name
};

}  // namespace shoal
