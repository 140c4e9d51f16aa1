// FeedForward: the second half of a decoder layer, a dense MLP or a mixture of experts.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "parallel/linear.h"
#include "runtime/model/model.h"
#include "runtime/offload/routed_experts.h"

namespace shoal {

// One pass of some tokens through a feed-forward, in the stages between which a step may issue work of
// other tokens (overlap.h); each once, in this order. `dispatch` and `combine` are what waits for other
// ranks and call only what Device::beside() allows; `compute` is this rank's own work.
// begin(), dispatch and combine take from their context's workspace what must last until the sums that
// combine returned have been used; compute takes only what it gives back.
class FeedForwardPass {
 public:
  virtual ~FeedForwardPass() = default;
  virtual void dispatch(ExecContext& ctx) = 0;
  virtual void compute(ExecContext& ctx) = 0;
  virtual Tensor combine(ExecContext& ctx) = 0;  // [T, hidden]
};

class FeedForward {
 public:
  virtual ~FeedForward() = default;
  // x: this rank's tokens (all ranks hold the same ones unless dp_attention), which must last until
  // combine(). This object must outlive the pass.
  virtual std::unique_ptr<FeedForwardPass> begin(ExecContext& ctx, const Tensor& x,
                                                 const ModelBatch& batch) const = 0;
  // RoutedExperts::rows() of a mixture; empty: it is none, or does not count.
  virtual std::span<const uint64_t> expert_rows() const { return {}; }
  // All stages: the full sum for the same tokens, [T, hidden].
  Tensor forward(ExecContext& ctx, const Tensor& x, const ModelBatch& batch) const;
};

// down(silu(gate(x)) * up(x)), cut by columns, then rows.
class Mlp {
 public:
  void load(WeightSource& source, const std::string& name, int64_t hidden, int64_t intermediate,
            Range columns);
  // out: a partial sum over ranks, [T, hidden].
  void partial(ExecContext& ctx, const Tensor& x, const Tensor& out) const;

 private:
  ColumnParallelLinear gate_proj_, up_proj_;  // [columns, hidden]
  RowParallelLinear down_proj_;               // [hidden, columns]
};

class DenseFeedForward : public FeedForward {
 public:
  DenseFeedForward(const ModelConfig& config, const ParallelLayout& layout, const std::string& name,
                   WeightSource& source);
  std::unique_ptr<FeedForwardPass> begin(ExecContext& ctx, const Tensor& x,
                                         const ModelBatch& batch) const override;

 private:
  class Pass;
  bool scattered_;
  Mlp mlp_;
};

// DeepSeek's mixture: routed experts (whole ones by rank) plus shared experts (cut like an MLP).
class MoeFeedForward : public FeedForward {
 public:
  // offload: where the routed experts live; null: on the device. count_experts: see ModelOptions.
  MoeFeedForward(const ModelConfig& config, const ParallelLayout& layout, const std::string& name,
                 WeightSource& source, ExpertStore* offload, bool count_experts);
  std::unique_ptr<FeedForwardPass> begin(ExecContext& ctx, const Tensor& x,
                                         const ModelBatch& batch) const override;

  std::span<const uint64_t> expert_rows() const override { return experts_->rows(); }

 private:
  class ReplicatedPass;
  class AllToAllPass;
  struct Routing {
    Tensor expert_ids;  // [T, top_k] I32
    Tensor weights;     // [T, top_k] F32
  };
  Routing route(ExecContext& ctx, const Tensor& x) const;

  const RouterSpec router_;
  const bool scattered_;
  const ShardTable expert_ranges_;
  ReplicatedLinear gate_;            // [n_routed_experts, hidden]
  Tensor e_score_correction_bias_;   // [n_routed_experts], or undefined
  std::unique_ptr<RoutedExperts> experts_;  // of this rank
  std::optional<Mlp> shared_experts_;
};

// Rows of `x` of all ranks, in rank order, when tokens are scattered.
Tensor gather_tokens(ExecContext& ctx, const Tensor& x, const std::vector<int64_t>& rows);
// This rank's rows of the sum over ranks.
Tensor reduce_scatter_tokens(ExecContext& ctx, const Tensor& x, const std::vector<int64_t>& rows);

}  // namespace shoal
