// CheckpointSource: the WeightSource over a checkpoint of any format. Reads only the byte ranges asked
// for, with several threads, straight into device memory that it owns.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/device.h"
#include "parallel/weight_source.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/slice_reader.h"
#include "runtime/model/model_config.h"

namespace shoal {

// Checkpoint and device must outlive it, and it must outlive every view that it returned.
// REQUIRES: one thread calls (the one that drives the device).
class CheckpointSource : public WeightSource {
 public:
  // dtype BF16: matrices stored as F32 are rounded to BF16. dtype F32: everything stays as it is
  // stored. `progress` (may be empty) is called with bytes read so far, on the loading thread.
  CheckpointSource(const Checkpoint& checkpoint, Device& device, DType dtype,
                   std::function<void(uint64_t)> progress = {});

  // Whether the checkpoint has the tensor called exactly `name`.
  bool has(const std::string& name) const override;
  Weight matrix(const std::string& name, int64_t n, int64_t k, Range rows, Range cols,
                bool keep_f32 = false) override;
  Tensor vector(const std::string& name, int64_t n, Range range) override;
  Tensor allocate(const std::string& label, DType dtype,
                  std::initializer_list<int64_t> dims) override;

  // The form in which matrix() would hold `name`, which then counts as asked for.
  WeightForm held_form(const std::string& name, int64_t n, int64_t k);
  // Reads the whole matrix to `out`, memory of `device` (the host's, too) that the caller owns. May be
  // called again, also after loading: `progress` is then no longer called.
  // REQUIRES: out is of held_form().
  void read_to(const std::string& name, Device& device, const Weight& out);
  void end_progress() { reader_.end_progress(); }

  // Of tensors, in the checkpoint's files.
  uint64_t bytes_read() const { return reader_.bytes_read(); }
  // Of all tensors handed out, without what alignment costs.
  uint64_t bytes_held() const { return bytes_held_; }
  // Names of tensors of the checkpoint that nothing asked for: what other ranks hold, an MTP layer
  // that was skipped, or a contradiction between config and weights (see check_all_used).
  std::vector<std::string> unused() const;
  const Checkpoint& checkpoint() const { return checkpoint_; }

 private:
  Weight load(const StoredWeight& stored, Range rows, Range cols, DType dtype);
  void* take(uint64_t bytes);

  const Checkpoint& checkpoint_;
  Device& device_;
  const DType dtype_;
  SliceReader reader_;
  std::vector<Buffer> buffers_;
  std::byte* arena_ = nullptr;  // where small tensors go: what is left of the latest chunk
  uint64_t arena_left_ = 0;
  std::set<std::string> used_;
  uint64_t bytes_held_ = 0;
};

// As what a matrix stored as `stored` is held in a model of type `model`.
DType held_type(DType stored, DType model, bool keep_f32);

// After a model took what it wants: refuses tensors that neither this rank nor any other asks for
// (check_all_known in tensor_plan.h), up to three by name.
void check_all_used(const CheckpointSource& source, const ModelConfig& config);

}  // namespace shoal
