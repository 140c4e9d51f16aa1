// CheckpointSource: the WeightSource over a checkpoint folder. Reads only the byte ranges asked for,
// with several threads, straight into device memory that it owns.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/device.h"
#include "parallel/weight_source.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/model/model_config.h"

namespace shoal {

class CheckpointSource : public WeightSource {
 public:
  // dtype BF16: F32 tensors are rounded to BF16 (matrices only). `progress` (may be empty) is called
  // with bytes read so far, on the loading thread.
  CheckpointSource(const Checkpoint& checkpoint, const ModelConfig& config, Device& device,
                   DType dtype, std::function<void(uint64_t)> progress = {});

  bool has(const std::string& name) const override;
  Weight matrix(const std::string& name, int64_t n, int64_t k, Range rows, Range cols,
                bool keep_f32 = false) override;
  Tensor vector(const std::string& name, int64_t n, Range range) override;
  Tensor allocate(const std::string& label, DType dtype,
                  std::initializer_list<int64_t> dims) override;

  uint64_t bytes_read() const { return bytes_read_; }     // of the checkpoint's files
  uint64_t bytes_held() const { return bytes_held_; }     // of device memory
  // Names of tensors of the checkpoint that nothing asked for (an MTP layer that was skipped, or a
  // contradiction between config and weights).
  std::vector<std::string> unused() const;

 private:
  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  Device& device_;
  DType dtype_;
  std::function<void(uint64_t)> progress_;
  std::vector<Buffer> buffers_;
  std::map<std::string, bool> used_;
  uint64_t bytes_read_ = 0;
  uint64_t bytes_held_ = 0;
};

}  // namespace shoal
