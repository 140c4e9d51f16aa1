#include "runtime/model/feed_forward.h"

#include <numeric>

#include "parallel/expert_parallel.h"

namespace shoal {

Tensor gather_tokens(ExecContext& ctx, const Tensor& x, const std::vector<int64_t>& rows) {
  const int64_t total = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  Tensor all = ctx.workspace.tensor(x.dtype, {total, x.dim(1)});
  ctx.comm.all_gather_rows(x, rows, all);
  return all;
}

Tensor reduce_scatter_tokens(ExecContext& ctx, const Tensor& x, const std::vector<int64_t>& rows) {
  Tensor own = ctx.workspace.tensor(x.dtype, {rows[ctx.comm.rank()], x.dim(1)});
  ctx.comm.reduce_scatter_rows(x, rows, own);
  return own;
}

void Mlp::load(WeightSource& source, const std::string& name, int64_t hidden, int64_t intermediate,
               Range columns) {
  gate_proj_.load(source, name + ".gate_proj", intermediate, hidden, columns);
  up_proj_.load(source, name + ".up_proj", intermediate, hidden, columns);
  down_proj_.load(source, name + ".down_proj", hidden, intermediate, columns);
}

Tensor Mlp::partial(ExecContext& ctx, const Tensor& x) const {
  Tensor gate = gate_proj_.forward(ctx, x);  // [T, columns]
  Tensor up = up_proj_.forward(ctx, x);
  ctx.ops.silu_mul(gate, up, gate);
  return down_proj_.forward(ctx, gate);
}

DenseFeedForward::DenseFeedForward(const ModelConfig& c, const ParallelLayout& layout,
                                   const std::string& name, WeightSource& source)
    : scattered_(layout.dp_attention) {
  mlp_.load(source, name, c.hidden_size, c.intermediate_size,
            split_evenly(c.intermediate_size, layout.size,
                         column_unit(c.intermediate_size))[layout.rank]);
}

Tensor DenseFeedForward::forward(ExecContext& ctx, const Tensor& x, const ModelBatch& batch) const {
  if (scattered_) {
    Tensor sums = mlp_.partial(ctx, gather_tokens(ctx, x, batch.tokens_per_rank));
    return reduce_scatter_tokens(ctx, sums, batch.tokens_per_rank);
  }
  Tensor sum = mlp_.partial(ctx, x);
  ctx.comm.all_reduce_sum(sum);
  return sum;
}

MoeFeedForward::MoeFeedForward(const ModelConfig& c, const ParallelLayout& layout,
                               const std::string& name, WeightSource& source)
    : router_(c.router),
      scattered_(layout.dp_attention),
      expert_ranges_(split_evenly(c.n_routed_experts, layout.size)),
      experts_(expert_ranges_[layout.rank]) {
  gate_.load(source, name + ".gate", c.n_routed_experts, c.hidden_size, /*bias=*/false,
             /*keep_f32=*/true);
  if (router_.kind == RouterKind::kNoauxTcSigmoid) {
    e_score_correction_bias_ = source.vector(name + ".gate.e_score_correction_bias",
                                             c.n_routed_experts, {0, c.n_routed_experts});
  }
  const int64_t inner = c.moe_intermediate_size;
  for (int64_t e = experts_.begin; e < experts_.end; ++e) {
    const std::string expert = name + ".experts." + std::to_string(e);
    const Range hidden{0, c.hidden_size}, all{0, inner};
    gate_proj_.push_back(source.matrix(expert + ".gate_proj", inner, c.hidden_size, all, hidden));
    up_proj_.push_back(source.matrix(expert + ".up_proj", inner, c.hidden_size, all, hidden));
    down_proj_.push_back(source.matrix(expert + ".down_proj", c.hidden_size, inner, hidden, all));
  }
  if (c.n_shared_experts > 0) {
    const int64_t shared = inner * c.n_shared_experts;
    shared_experts_.emplace().load(
        source, name + ".shared_experts", c.hidden_size, shared,
        split_evenly(shared, layout.size, column_unit(shared))[layout.rank]);
  }
}

MoeFeedForward::Routing MoeFeedForward::route(ExecContext& ctx, const Tensor& x) const {
  Tensor logits = gate_.forward(ctx, x, DType::kF32);  // [T, n_routed_experts]
  Routing routing{ctx.workspace.tensor(DType::kI32, {x.dim(0), router_.top_k}),
                  ctx.workspace.tensor(DType::kF32, {x.dim(0), router_.top_k})};
  ctx.ops.route(logits, e_score_correction_bias_, router_, routing.expert_ids, routing.weights);
  return routing;
}

Tensor MoeFeedForward::local_experts(ExecContext& ctx, const Tensor& x, const Tensor& expert_ids,
                                     const Tensor& weights) const {
  Workspace& ws = ctx.workspace;
  const int64_t T = x.dim(0), top_k = expert_ids.dim(1), hidden = x.dim(1);
  const auto inner = gate_proj_.front().n();
  Tensor out = ws.tensor(x.dtype, {T, hidden});
  Tensor source_row = ws.tensor(DType::kI32, {T * top_k});
  Tensor slot = ws.tensor(DType::kI32, {T, top_k});
  Tensor offsets = ws.tensor(DType::kI32, {experts_.size() + 1});
  const int64_t rows = ctx.ops.sort_by_expert(expert_ids, static_cast<int32_t>(experts_.begin),
                                              source_row, slot, offsets);
  Tensor sorted = ws.tensor(x.dtype, {rows, hidden});
  ctx.ops.gather_rows(x, source_row.slice(0, 0, rows), sorted);
  Tensor gate = ws.tensor(x.dtype, {rows, inner}), up = ws.tensor(x.dtype, {rows, inner});
  ctx.ops.grouped_linear(sorted, gate_proj_, offsets, gate);
  ctx.ops.grouped_linear(sorted, up_proj_, offsets, up);
  ctx.ops.silu_mul(gate, up, gate);
  ctx.ops.grouped_linear(gate, down_proj_, offsets, sorted);
  ctx.ops.combine(sorted, slot, weights, out);
  return out;
}

Tensor MoeFeedForward::forward(ExecContext& ctx, const Tensor& x, const ModelBatch& batch) const {
  // Routed and shared experts are summed over ranks apart, each in rank order, and then added: so
  // both exchanges give the same bits and a step may choose either.
  if (batch.exchange == ExpertExchange::kReplicated) {
    const Tensor all = scattered_ ? gather_tokens(ctx, x, batch.tokens_per_rank) : x;
    const Routing routing = route(ctx, all);
    Tensor sum = reduce(ctx, local_experts(ctx, all, routing.expert_ids, routing.weights), batch);
    if (shared_experts_) ctx.ops.add(reduce(ctx, shared_experts_->partial(ctx, all), batch), sum);
    return sum;
  }

  // All-to-all: each rank routes its own tokens; tokens that all ranks hold are dealt out first.
  std::vector<int64_t> rows = batch.tokens_per_rank;
  Tensor own = x, all = x;
  if (scattered_) {
    if (shared_experts_) all = gather_tokens(ctx, x, rows);
  } else {
    const ShardTable table = split_evenly(x.dim(0), ctx.comm.size());
    rows = sizes_of(table);
    own = x.slice(0, table[ctx.comm.rank()].begin, table[ctx.comm.rank()].end);
  }
  const Routing routing = route(ctx, own);
  Tensor sum = dispatch_and_combine(
      ctx, expert_ranges_, own, routing.expert_ids, routing.weights,
      [&](const Tensor& rows_here, const Tensor& expert_ids, const Tensor& weights) {
        return local_experts(ctx, rows_here, expert_ids, weights);
      });  // [own tokens, hidden]
  if (shared_experts_) {
    ctx.ops.add(reduce_scatter_tokens(ctx, shared_experts_->partial(ctx, all), rows), sum);
  }
  return scattered_ ? sum : gather_tokens(ctx, sum, rows);
}

Tensor MoeFeedForward::reduce(ExecContext& ctx, const Tensor& sum, const ModelBatch& batch) const {
  if (scattered_) return reduce_scatter_tokens(ctx, sum, batch.tokens_per_rank);
  ctx.comm.all_reduce_sum(sum);
  return sum;
}

}  // namespace shoal
