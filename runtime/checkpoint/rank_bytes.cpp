#include "runtime/checkpoint/rank_bytes.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

int64_t blocks_touched(Range range, int64_t size) {
  return range.size() == 0 ? 0 : (range.end + size - 1) / size - range.begin / size;
}

DType held_type(const PlannedTensor& tensor, DType stored, DType dtype) {
  if (tensor.k == 0) return DType::kF32;
  const bool rounded = stored == DType::kF32 && dtype == DType::kBF16 && !tensor.keep_f32;
  return rounded ? DType::kBF16 : stored;
}

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
    const TensorInfo& info = planned_info(checkpoint, tensor);
    const auto elements = static_cast<uint64_t>(slice.rows.size() * slice.cols.size());
    // An expert of another rank is not asked for at all.
    if (tensor.cut == Cut::kExpert && elements == 0) continue;
    RankBytes::Count count{.tensors = 1};
    count.read = elements * dtype_size(info.dtype);
    count.held = elements * dtype_size(held_type(tensor, info.dtype, layout.dtype));
    if (info.dtype == DType::kF8E4M3 && elements > 0) {
      const uint64_t scales =
          static_cast<uint64_t>(blocks_touched(slice.rows, config.fp8_block_rows) *
                                blocks_touched(slice.cols, config.fp8_block_cols)) *
          sizeof(float);
      count.read += scales;
      count.held += scales;
    }
    bytes.by_kind[static_cast<int>(tensor.kind)] += count;
  }
  const uint64_t absorbed = absorbed_bytes(config, layout);
  bytes.derived = absorbed * static_cast<uint64_t>(config.num_hidden_layers);
  bytes.derived_mtp = absorbed * static_cast<uint64_t>(config.num_nextn_predict_layers);
  return bytes;
}

}  // namespace shoal
