// WrappedCheckpoint: another Checkpoint, whose matrices a subclass changes.
#pragma once

#include "runtime/checkpoint/checkpoint.h"

namespace shoal {

class WrappedCheckpoint : public Checkpoint {
 public:
  explicit WrappedCheckpoint(std::unique_ptr<Checkpoint> base) : base_(std::move(base)) {}
  bool has(const std::string& name) const override { return base_->has(name); }
  std::vector<std::string> names() const override { return base_->names(); }
  std::unique_ptr<StoredWeight> vector(const std::string& name, int64_t n) const override {
    return base_->vector(name, n);
  }
  std::vector<FileTensor> file_tensors() const override { return base_->file_tensors(); }
  std::string quantization() const override { return base_->quantization(); }
  const std::string& path() const override { return base_->path(); }
  size_t num_files() const override { return base_->num_files(); }
  uint64_t total_bytes() const override { return base_->total_bytes(); }

 protected:
  const std::unique_ptr<Checkpoint> base_;
};

}  // namespace shoal
