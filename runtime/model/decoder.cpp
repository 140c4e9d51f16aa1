#include "runtime/model/decoder.h"

#include <numeric>

#include "runtime/model/mtp.h"
#include "runtime/model/overlap.h"
#include "runtime/model/rope.h"

namespace shoal {
namespace {

bool is_deepseek(const ModelConfig& config) {
  switch (config.architecture) {
    case Architecture::kDeepseekV2:
    case Architecture::kDeepseekV3:
      return true;
    case Architecture::kQwen2:
    case Architecture::kLlama:
      return false;
  }
  SHOAL_CHECK(false, "architecture {}", config.architecture_name);
}

}  // namespace

Range attention_heads_of(const ModelConfig& config, const ParallelLayout& layout) {
  if (layout.dp_attention) return {0, config.num_attention_heads};
  if (layout.size > config.num_attention_heads) {
    throw_invalid("--tensor-parallel-size {}: the model has {} attention heads; use at most that many "
                  "ranks",
                  layout.size, config.num_attention_heads);
  }
  return split_evenly(config.num_attention_heads, layout.size)[layout.rank];
}

Tensor load_rope_table(const ModelConfig& config, const ModelOptions& options, int64_t dim,
                       WeightSource& source, Device& device) {
  Tensor table = source.allocate("rope table", DType::kF32, {options.max_model_len, dim});
  store_values(device, rope_table(config, dim, options.max_model_len), table);
  return table;
}

Decoder::Decoder(const ModelConfig& config, const ParallelLayout& layout, WeightSource& source,
                 std::vector<DecoderLayer> layers, std::unique_ptr<MtpModule> mtp)
    : config_(config),
      layout_(layout),
      layers_(std::move(layers)),
      mtp_(std::move(mtp)) {
  const int64_t hidden = config.hidden_size, vocab = config.vocab_size;
  const ShardTable vocab_ranges = split_evenly(vocab, layout.size);
  embed_tokens_.load(source, "model.embed_tokens", vocab, hidden, vocab_ranges, layout.rank);
  norm_ = source.vector("model.norm.weight", hidden, {0, hidden});
  if (config.tie_word_embeddings) {
    lm_head_.tie(embed_tokens_, vocab_ranges);
  } else {
    lm_head_.load(source, "lm_head", vocab, hidden, vocab_ranges, layout.rank);
  }
}

Decoder::~Decoder() = default;

std::vector<std::span<const uint64_t>> Decoder::expert_rows() const {
  std::vector<std::span<const uint64_t>> rows;
  for (const DecoderLayer& layer : layers_) {
    if (const auto counts = layer.mlp->expert_rows(); !counts.empty()) rows.push_back(counts);
  }
  return rows;
}

Tensor embed_own_tokens(ExecContext& ctx, const ParallelLayout& layout,
                        const VocabParallelEmbedding& embedding, const ModelBatch& batch) {
  if (!layout.dp_attention) return embedding.forward(ctx, batch.token_ids);
  // Each rank holds some rows of the table: all ranks look up everybody's tokens.
  Tensor ids =
      gather_tokens(ctx, batch.token_ids.reshape({batch.num_tokens, 1}), batch.tokens_per_rank);
  Tensor all = embedding.forward(ctx, ids.reshape({ids.dim(0)}));
  const int64_t begin = std::accumulate(batch.tokens_per_rank.begin(),
                                        batch.tokens_per_rank.begin() + layout.rank, int64_t{0});
  return all.slice(0, begin, begin + batch.num_tokens);
}

void attend(ExecContext& ctx, const ParallelLayout& layout, const DecoderLayer& layer, float eps,
            const ModelBatch& batch, const KvCache::Layer& cache, const Tensor& residual,
            const Tensor& h) {
  Tensor attn = layer.self_attn->forward(ctx, h, batch, cache);  // [T, hidden]
  const Tensor& norm = layer.post_attention_layernorm;
  if (layout.dp_attention) {
    ctx.ops.add_rms_norm(attn, residual, norm, eps, h);
  } else if (!ctx.comm.all_reduce_add_rms_norm(attn, residual, norm, eps, h)) {
    ctx.comm.all_reduce_sum(attn);
    ctx.ops.add_rms_norm(attn, residual, norm, eps, h);
  }
}

void run_layer(ExecContext& ctx, const ParallelLayout& layout, const DecoderLayer& layer,
               const Tensor& next_norm, float eps, const ModelBatch& batch,
               const KvCache::Layer& cache, const Tensor& residual, const Tensor& h) {
  Workspace::Scope scope(ctx.workspace);
  attend(ctx, layout, layer, eps, batch, cache, residual, h);
  Tensor mlp = layer.mlp->forward(ctx, h, batch);  // [T, hidden]
  ctx.ops.add_rms_norm(mlp, residual, next_norm, eps, h);
}

Tensor logits_of_rows(ExecContext& ctx, const ParallelLayout& layout, const ParallelLmHead& head,
                      const ModelBatch& batch, const Tensor& hidden) {
  Tensor rows = ctx.workspace.tensor(hidden.dtype, {batch.logits_rows.dim(0), hidden.dim(1)});
  ctx.ops.gather_rows(hidden, batch.logits_rows, rows);
  if (layout.dp_attention) rows = gather_tokens(ctx, rows, batch.logits_per_rank);
  return head.forward(ctx, rows);
}

Tensor Decoder::forward(ExecContext& ctx, const ModelBatch& batch, const KvCache& cache) const {
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  Tensor residual = embed_own_tokens(ctx, layout_, embed_tokens_, batch);  // [T, hidden]
  Tensor h = ctx.workspace.tensor(ctx.activation_dtype, {batch.num_tokens, config_.hidden_size});
  ctx.ops.rms_norm(residual, layers_.front().input_layernorm, eps, h);
  if (can_overlap(layout_, batch)) {
    run_layers_overlapped(ctx, layout_, layers_, norm_, eps, batch, cache, residual, h);
    return h;
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Tensor& next_norm = i + 1 < layers_.size() ? layers_[i + 1].input_layernorm : norm_;
    ctx.comm.at_layer(static_cast<int32_t>(i));
    run_layer(ctx, layout_, layers_[i], next_norm, eps, batch, cache.layers[i], residual, h);
  }
  ctx.comm.at_layer(-1);
  return h;
}

Tensor Decoder::logits(ExecContext& ctx, const ModelBatch& batch, const Tensor& hidden) const {
  return logits_of_rows(ctx, layout_, lm_head_, batch, hidden);
}

void store_values(Device& device, std::span<const float> values, const Tensor& out) {
  SHOAL_CHECK(static_cast<int64_t>(values.size()) == out.num_elements() && out.contiguous(),
              "{} values for {}", values.size(), out.shape_string());
  if (out.dtype == DType::kF32) {
    device.copy_to_device(out.data, values.data(), values.size_bytes());
    return;
  }
  SHOAL_CHECK(out.dtype == DType::kBF16, "values stored as {}", out.shape_string());
  std::vector<BF16> rounded(values.size());
  for (size_t i = 0; i < values.size(); ++i) rounded[i] = to_bf16(values[i]);
  device.copy_to_device(out.data, rounded.data(), rounded.size() * sizeof(BF16));
}

std::unique_ptr<LayerLoader> make_layer_loader(const ModelConfig& config,
                                               const ParallelLayout& layout,
                                               const ModelOptions& options, WeightSource& source,
                                               ExecContext& ctx) {
  const auto make = is_deepseek(config) ? make_deepseek_layers : make_dense_layers;
  return make(config, layout, options, source, ctx);
}

std::unique_ptr<Model> make_model(const ModelConfig& config, const ParallelLayout& layout,
                                  const ModelOptions& options, WeightSource& source,
                                  ExecContext& ctx) {
  const auto make = is_deepseek(config) ? make_deepseek : make_dense;
  return make(config, layout, options, source, ctx);
}

}  // namespace shoal
