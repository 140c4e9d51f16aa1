#include "runtime/offload/routed_experts.h"

namespace shoal {

void multiply_experts(Ops& ops, const Tensor& x,
                      const std::array<std::vector<Weight>, ExpertImage::kParts>& experts,
                      const Tensor& offsets, const Tensor& gate, const Tensor& up) {
  ops.grouped_linear(x, experts[ExpertImage::kGate], offsets, gate);
  ops.grouped_linear(x, experts[ExpertImage::kUp], offsets, up);
  ops.silu_mul(gate, up, gate);
  ops.grouped_linear(gate, experts[ExpertImage::kDown], offsets, x);
}

DeviceExperts::DeviceExperts(WeightSource& source, const std::string& name, int64_t hidden,
                             int64_t inner, Range experts, bool count)
    : experts_(experts), inner_(inner) {
  if (count) rows_.resize(experts.size());
  for (int64_t e = experts.begin; e < experts.end; ++e) {
    const std::string expert = name + ".experts." + std::to_string(e) + ".";
    for (int part = 0; part < ExpertImage::kParts; ++part) {
      const bool down = part == ExpertImage::kDown;
      const int64_t n = down ? hidden : inner, k = down ? inner : hidden;
      weights_[part].push_back(
          source.matrix(expert + ExpertImage::kNames[part], n, k, {0, n}, {0, k}));
    }
  }
}

void DeviceExperts::forward(ExecContext& ctx, const Tensor& x, const Tensor& expert_ids,
                            const Tensor& weights, const Tensor& out) {
  Workspace& ws = ctx.workspace;
  const int64_t T = x.dim(0), top_k = expert_ids.dim(1);
  Tensor source_row = ws.tensor(DType::kI32, {T * top_k});
  Tensor slot = ws.tensor(DType::kI32, {T, top_k});
  Tensor offsets = ws.tensor(DType::kI32, {experts_.size() + 1});
  const int64_t rows = ctx.ops.sort_by_expert(expert_ids, static_cast<int32_t>(experts_.begin),
                                              source_row, slot, offsets);
  for (size_t e = 0; e < rows_.size(); ++e) {
    const int32_t* ends = offsets.as<int32_t>() + e;
    rows_[e] += static_cast<uint64_t>(ends[1] - ends[0]);
  }
  Tensor sorted = ws.tensor(x.dtype, {rows, x.dim(1)});
  ctx.ops.gather_rows(x, source_row.slice(0, 0, rows), sorted);
  Tensor gate = ws.tensor(x.dtype, {rows, inner_}), up = ws.tensor(x.dtype, {rows, inner_});
  multiply_experts(ctx.ops, sorted, weights_, offsets, gate, up);
  ctx.ops.combine(sorted, slot, weights, out);
}

}  // namespace shoal
