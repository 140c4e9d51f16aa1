// WeightBytes: what the weights of a rank take, from shapes and forms alone. The tensors of a model fall
// into some dozen classes of the same shape, cut and form (the 47,000 of V3 into 25), so that a plan of
// any layout costs microseconds and hundreds of them can be compared.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/checkpoint/stored_weight.h"
#include "runtime/checkpoint/tensor_plan.h"
#include "runtime/model/model.h"

namespace shoal {

using FormOf = std::function<WeightForm(const PlannedTensor&)>;
// As a model is published, in files that are not looked at: FP8 blocks where its config says so, else dtype
// (F32 | BF16). Embedding, head, routers and norms are never quantised.
FormOf forms_as_published(const ModelConfig& config, DType dtype);
// `stored`, quantised while loading, but for what stays_as_stored(). Throws InvalidInput for a --quantization
// that there is not.
FormOf forms_quantized(FormOf stored, const std::string& quantization);

// What loading makes of the checkpoint's own tensors, from their headers. The function throws InvalidInput
// for a tensor that is missing or has another shape.
FormOf forms_of_checkpoint(std::shared_ptr<const Checkpoint> checkpoint, DType dtype);

class ModelWeights {
 public:
  ModelWeights(const ModelConfig& config, const FormOf& form_of, DType dtype, bool with_mtp);

  struct Held {
    std::array<uint64_t, kNumTensorKinds> by_kind{};
    uint64_t absorbed = 0;    // kv_b_proj once more, arranged for decode
    uint64_t rounding = 0;    // what alignment and chunks of small tensors cost
    int64_t tensors = 0;
    uint64_t of(TensorKind kind) const { return by_kind[static_cast<int>(kind)]; }
    uint64_t total() const;   // all of the above
  };
  // With a RoPE table of so many bytes, which is not counted but takes its place among the small tensors.
  // experts_apart: routed experts have memory of their own (runtime/offload), and no part in the rounding.
  // REQUIRES: a layout that fits the model (check_layout).
  Held held(const ParallelLayout& layout, uint64_t rope_table = 0, bool experts_apart = false) const;

  // Parameters of a kind in the whole model, and bytes that they take uncut.
  struct Whole {
    int64_t parameters = 0;
    uint64_t bytes = 0;
  };
  const Whole& whole(TensorKind kind) const { return whole_[static_cast<int>(kind)]; }
  int64_t parameters() const;         // of the main model
  int64_t active_parameters() const;  // that one token meets
  uint64_t total_bytes() const;       // of the main model, absorbed forms left out
  // Bytes of kv_b_proj, which decode does not read, on this rank.
  uint64_t kv_b_bytes(const ParallelLayout& layout) const;
  const ModelConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }

 private:
  struct Class {
    PlannedTensor tensor;  // one of them
    WeightForm form;
    bool kv_b = false;
    int64_t count = 0;
  };
  struct Loaded {
    uint16_t of_class = 0;
    int16_t expert = -1;  // >= 0: held by the rank of this expert
    bool absorbed = false;  // no tensor: here the two absorbed forms are made
  };

  ModelConfig config_;
  DType dtype_;
  bool with_mtp_;
  std::vector<Class> classes_;
  std::vector<Loaded> order_;  // in which the model loads them
  std::array<Whole, kNumTensorKinds> whole_{};
};

// Throws InvalidInput for more ranks than attention heads (without DP attention) or routed experts.
void check_layout(const ModelConfig& config, int ranks, bool dp_attention);

}  // namespace shoal
