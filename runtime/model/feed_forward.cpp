#include "runtime/model/feed_forward.h"

#include <numeric>

#include "parallel/expert_parallel.h"
#include "runtime/offload/expert_store.h"

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

void Mlp::partial(ExecContext& ctx, const Tensor& x, const Tensor& out) const {
  Tensor gate = gate_proj_.forward(ctx, x);  // [T, columns]
  Tensor up = up_proj_.forward(ctx, x);
  ctx.ops.silu_mul(gate, up, gate);
  down_proj_.forward_to(ctx, gate, out);
}

Tensor FeedForward::forward(ExecContext& ctx, const Tensor& x, const ModelBatch& batch) const {
  const std::unique_ptr<FeedForwardPass> pass = begin(ctx, x, batch);
  pass->dispatch(ctx);
  pass->compute(ctx);
  return pass->combine(ctx);
}

namespace {

// All ranks hold all tokens, or get them: each computes its own share, and the shares are added.
class SharedTokens {
 public:
  SharedTokens(const Tensor& x, bool scattered, const std::vector<int64_t>& rows)
      : all_(x), scattered_(scattered), rows_(rows) {}
  void gather(ExecContext& ctx) {
    if (scattered_) all_ = gather_tokens(ctx, all_, rows_);
  }
  const Tensor& all() const { return all_; }
  // The sum over ranks of all tokens' partial sums: of this rank's tokens when they are scattered.
  Tensor reduce(ExecContext& ctx, const Tensor& sum) const {
    if (scattered_) return reduce_scatter_tokens(ctx, sum, rows_);
    ctx.comm.all_reduce_sum(sum);
    return sum;
  }
  // Room for partial sums, as large as all().
  Tensor sums(ExecContext& ctx) const {
    return ctx.workspace.tensor(all_.dtype, {all_.dim(0), all_.dim(1)});
  }

 private:
  Tensor all_;
  const bool scattered_;
  const std::vector<int64_t> rows_;
};

}  // namespace

class DenseFeedForward::Pass : public FeedForwardPass {
 public:
  Pass(const DenseFeedForward& layer, const Tensor& x, const ModelBatch& batch)
      : layer_(layer), tokens_(x, layer.scattered_, batch.tokens_per_rank) {}
  void dispatch(ExecContext& ctx) override {
    tokens_.gather(ctx);
    sums_ = tokens_.sums(ctx);
  }
  void compute(ExecContext& ctx) override { layer_.mlp_.partial(ctx, tokens_.all(), sums_); }
  Tensor combine(ExecContext& ctx) override { return tokens_.reduce(ctx, sums_); }

 private:
  const DenseFeedForward& layer_;
  SharedTokens tokens_;
  Tensor sums_;
};

DenseFeedForward::DenseFeedForward(const ModelConfig& c, const ParallelLayout& layout,
                                   const std::string& name, WeightSource& source)
    : scattered_(layout.dp_attention) {
  mlp_.load(source, name, c.hidden_size, c.intermediate_size,
            split_evenly(c.intermediate_size, layout.size,
                         column_unit(c.intermediate_size))[layout.rank]);
}

std::unique_ptr<FeedForwardPass> DenseFeedForward::begin(ExecContext& ctx, const Tensor& x,
                                                         const ModelBatch& batch) const {
  return std::make_unique<Pass>(*this, x, batch);
}

MoeFeedForward::MoeFeedForward(const ModelConfig& c, const ParallelLayout& layout,
                               const std::string& name, WeightSource& source, ExpertStore* offload,
                               bool count_experts)
    : router_(c.router),
      scattered_(layout.dp_attention),
      expert_ranges_(split_evenly(c.n_routed_experts, layout.size)) {
  gate_.load(source, name + ".gate", c.n_routed_experts, c.hidden_size, /*bias=*/false,
             /*keep_f32=*/true);
  if (router_.kind == RouterKind::kNoauxTcSigmoid) {
    e_score_correction_bias_ = source.vector(name + ".gate.e_score_correction_bias",
                                             c.n_routed_experts, {0, c.n_routed_experts});
  }
  const int64_t inner = c.moe_intermediate_size;
  if (offload != nullptr) {
    experts_ = offload->load_layer(name);
  } else {
    experts_ = std::make_unique<DeviceExperts>(source, name, c.hidden_size, inner,
                                               expert_ranges_[layout.rank], count_experts);
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

// Routed and shared experts are summed over ranks apart, each in rank order, and then added: so both
// exchanges give the same bits and a step may choose either.
class MoeFeedForward::ReplicatedPass : public FeedForwardPass {
 public:
  ReplicatedPass(const MoeFeedForward& layer, const Tensor& x, const ModelBatch& batch)
      : layer_(layer), tokens_(x, layer.scattered_, batch.tokens_per_rank) {}
  void dispatch(ExecContext& ctx) override {
    tokens_.gather(ctx);
    routed_ = tokens_.sums(ctx);
    if (layer_.shared_experts_) shared_ = tokens_.sums(ctx);
  }
  void compute(ExecContext& ctx) override {
    // The shared experts first: what the norm left beside its output (FP8) is still there.
    if (layer_.shared_experts_) layer_.shared_experts_->partial(ctx, tokens_.all(), shared_);
    const Routing routing = layer_.route(ctx, tokens_.all());
    layer_.experts_->forward(ctx, tokens_.all(), routing.expert_ids, routing.weights, routed_);
  }
  Tensor combine(ExecContext& ctx) override {
    Tensor sum = tokens_.reduce(ctx, routed_);
    if (layer_.shared_experts_) ctx.ops.add(tokens_.reduce(ctx, shared_), sum);
    return sum;
  }

 private:
  const MoeFeedForward& layer_;
  SharedTokens tokens_;
  Tensor routed_, shared_;
};

// Each rank routes its own tokens; tokens that all ranks hold are dealt out first.
class MoeFeedForward::AllToAllPass : public FeedForwardPass {
 public:
  AllToAllPass(const MoeFeedForward& layer, ExecContext& ctx, const Tensor& x,
               const ModelBatch& batch)
      : layer_(layer),
        all_(x),
        rows_(layer.scattered_ ? batch.tokens_per_rank
                               : sizes_of(split_evenly(x.dim(0), ctx.comm.size()))) {
    Tensor own = x;
    if (!layer.scattered_) {
      const Range mine = split_evenly(x.dim(0), ctx.comm.size())[ctx.comm.rank()];
      own = x.slice(0, mine.begin, mine.end);
    }
    const Routing routing = layer.route(ctx, own);
    exchange_.emplace(ctx, layer.expert_ranges_, own, routing.expert_ids, routing.weights);
  }
  void dispatch(ExecContext& ctx) override {
    if (layer_.shared_experts_) {
      // Before the exchange: it is on its way while the host plans that.
      if (layer_.scattered_) all_ = gather_tokens(ctx, all_, rows_);
      shared_ = ctx.workspace.tensor(all_.dtype, {all_.dim(0), all_.dim(1)});
    }
    exchange_->dispatch(ctx);
  }
  void compute(ExecContext& ctx) override {
    if (exchange_->x().dim(0) > 0) {
      layer_.experts_->forward(ctx, exchange_->x(), exchange_->expert_ids(), exchange_->weights(),
                               exchange_->partial());
    }
    if (layer_.shared_experts_) layer_.shared_experts_->partial(ctx, all_, shared_);
  }
  Tensor combine(ExecContext& ctx) override {
    Tensor sum = exchange_->combine(ctx);  // [own tokens, hidden]
    if (layer_.shared_experts_) ctx.ops.add(reduce_scatter_tokens(ctx, shared_, rows_), sum);
    return layer_.scattered_ ? sum : gather_tokens(ctx, sum, rows_);
  }

 private:
  const MoeFeedForward& layer_;
  Tensor all_, shared_;
  const std::vector<int64_t> rows_;  // tokens of each rank
  std::optional<TokenExchange> exchange_;
};

std::unique_ptr<FeedForwardPass> MoeFeedForward::begin(ExecContext& ctx, const Tensor& x,
                                                       const ModelBatch& batch) const {
  if (batch.exchange == ExpertExchange::kReplicated) {
    return std::make_unique<ReplicatedPass>(*this, x, batch);
  }
  return std::make_unique<AllToAllPass>(*this, ctx, x, batch);
}

}  // namespace shoal
