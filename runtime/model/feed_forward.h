// FeedForward: the second half of a decoder layer, a dense MLP or a mixture of experts.
#pragma once

#include <optional>
#include <vector>

#include "parallel/linear.h"
#include "runtime/model/model.h"

namespace shoal {

class FeedForward {
 public:
  virtual ~FeedForward() = default;
  // x: this rank's tokens (all ranks hold the same ones unless dp_attention). Returns the full sum
  // for the same tokens, [T, hidden].
  virtual Tensor forward(ExecContext& ctx, const Tensor& x, const ModelBatch& batch) const = 0;
};

// down(silu(gate(x)) * up(x)), cut by columns, then rows.
class Mlp {
 public:
  void load(WeightSource& source, const std::string& name, int64_t hidden, int64_t intermediate,
            Range columns);
  // A partial sum over ranks: [T, hidden].
  Tensor partial(ExecContext& ctx, const Tensor& x) const;

 private:
  ColumnParallelLinear gate_proj_, up_proj_;  // [columns, hidden]
  RowParallelLinear down_proj_;               // [hidden, columns]
};

class DenseFeedForward : public FeedForward {
 public:
  DenseFeedForward(const ModelConfig& config, const ParallelLayout& layout, const std::string& name,
                   WeightSource& source);
  Tensor forward(ExecContext& ctx, const Tensor& x, const ModelBatch& batch) const override;

 private:
  bool scattered_;
  Mlp mlp_;
};

// DeepSeek's mixture: routed experts (whole ones by rank) plus shared experts (cut like an MLP).
class MoeFeedForward : public FeedForward {
 public:
  MoeFeedForward(const ModelConfig& config, const ParallelLayout& layout, const std::string& name,
                 WeightSource& source);
  Tensor forward(ExecContext& ctx, const Tensor& x, const ModelBatch& batch) const override;

 private:
  struct Routing {
    Tensor expert_ids;  // [T, top_k] I32
    Tensor weights;     // [T, top_k] F32
  };
  Routing route(ExecContext& ctx, const Tensor& x) const;
  // The weighted sum of this rank's experts per row; zeros for a row that chose none of them.
  Tensor local_experts(ExecContext& ctx, const Tensor& x, const Tensor& expert_ids,
                       const Tensor& weights) const;
  // The sum over ranks of all tokens' partial sums: of this rank's tokens when they are scattered.
  Tensor reduce(ExecContext& ctx, const Tensor& sum, const ModelBatch& batch) const;

  const RouterSpec router_;
  const bool scattered_;
  const ShardTable expert_ranges_;
  const Range experts_;
  ReplicatedLinear gate_;            // [n_routed_experts, hidden]
  Tensor e_score_correction_bias_;   // [n_routed_experts], or undefined
  std::vector<Weight> gate_proj_, up_proj_, down_proj_;  // of the local experts
  std::optional<Mlp> shared_experts_;
};

// Rows of `x` of all ranks, in rank order, when tokens are scattered.
Tensor gather_tokens(ExecContext& ctx, const Tensor& x, const std::vector<int64_t>& rows);
// This rank's rows of the sum over ranks.
Tensor reduce_scatter_tokens(ExecContext& ctx, const Tensor& x, const std::vector<int64_t>& rows);

}  // namespace shoal
