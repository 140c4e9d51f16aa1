#include "runtime/checkpoint/rank_bytes.h"

#include "kernels/base/error.h"
#include "runtime/checkpoint/checkpoint_source.h"

namespace shoal {
namespace {

uint64_t absorbed_bytes(const ModelConfig& config, const RankLayout& layout) {
  if (!config.is_mla()) return 0;
  const int64_t heads =
      layout.dp_attention
          ? config.num_attention_heads
          : split_evenly(config.num_attention_heads, layout.ranks)[layout.rank].size();
  return static_cast<uint64_t>(heads * (config.qk_nope_head_dim + config.v_head_dim) *
                               config.kv_lora_rank * dtype_size(layout.dtype));
}

}  // namespace

RankBytes::Count& RankBytes::Count::operator+=(const Count& other) {
  tensors += other.tensors;
  read += other.read;
  held += other.held;
  return *this;
}

RankBytes::Count RankBytes::total(bool with_mtp) const {
  Count sum;
  for (int kind = 0; kind < kNumTensorKinds; ++kind) {
    if (kind != static_cast<int>(TensorKind::kMtp) || with_mtp) sum += by_kind[kind];
  }
  sum.held += derived + (with_mtp ? derived_mtp : 0);
  return sum;
}

RankBytes rank_bytes(const Checkpoint& checkpoint, const ModelConfig& config,
                     const RankLayout& layout) {
  SHOAL_CHECK(0 <= layout.rank && layout.rank < layout.ranks, "rank {} of {}", layout.rank,
              layout.ranks);
  if (layout.ranks > config.num_attention_heads && !layout.dp_attention) {
    throw_invalid(
        "--tensor-parallel-size {}: the model has {} attention heads; use at most that many",
        layout.ranks, config.num_attention_heads);
  }
  if (config.n_routed_experts > 0 && layout.ranks > config.n_routed_experts) {
    throw_invalid(
        "--tensor-parallel-size {}: the model has {} routed experts; use at most that many",
        layout.ranks, config.n_routed_experts);
  }
  RankBytes bytes;
  for (const PlannedTensor& tensor : tensor_plan(config)) {
    const HeldSlice slice =
        held_slice(tensor, config, layout.ranks, layout.rank, layout.dp_attention);
    const std::unique_ptr<StoredWeight> stored = planned_weight(checkpoint, tensor);
    // An expert of another rank is not asked for at all.
    if (tensor.cut == Cut::kExpert && slice.rows.size() * slice.cols.size() == 0) continue;
    WeightForm held = stored->form();
    held.dtype =
        tensor.k == 0 ? DType::kF32 : held_type(held.dtype, layout.dtype, tensor.keep_f32);
    const RankBytes::Count count{.tensors = 1,
                                 .read = stored->stored_bytes(slice.rows, slice.cols),
                                 .held = held.bytes(slice.rows, slice.cols)};
    bytes.by_kind[static_cast<int>(tensor.kind)] += count;
  }
  const uint64_t absorbed = absorbed_bytes(config, layout);
  bytes.derived = absorbed * static_cast<uint64_t>(config.num_hidden_layers);
  bytes.derived_mtp = absorbed * static_cast<uint64_t>(config.num_nextn_predict_layers);
  return bytes;
}

}  // namespace shoal
