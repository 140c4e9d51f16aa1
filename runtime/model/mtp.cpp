#include "runtime/model/mtp.h"

namespace shoal {

MtpModule::MtpModule(const ModelConfig& config, const ParallelLayout& layout, WeightSource& source,
                     DecoderLayer layer)
    : layout_(layout), eps_(static_cast<float>(config.rms_norm_eps)), layer_(std::move(layer)) {
  const std::string name = "model.layers." + std::to_string(config.num_hidden_layers);
  const int64_t hidden = config.hidden_size, vocab = config.vocab_size;
  const ShardTable vocab_ranges = split_evenly(vocab, layout.size);
  embed_tokens_.load(source, name + ".embed_tokens", vocab, hidden, vocab_ranges, layout.rank);
  enorm_ = source.vector(name + ".enorm.weight", hidden, {0, hidden});
  hnorm_ = source.vector(name + ".hnorm.weight", hidden, {0, hidden});
  eh_proj_.load(source, name + ".eh_proj", hidden, 2 * hidden);
  norm_ = source.vector(name + ".shared_head.norm.weight", hidden, {0, hidden});
  head_.load(source, name + ".shared_head.head", vocab, hidden, vocab_ranges, layout.rank);
}

Tensor MtpModule::forward(ExecContext& ctx, const ModelBatch& batch, const Tensor& hidden,
                          const KvCache::Layer& cache) const {
  const int64_t T = batch.num_tokens, width = hidden.dim(1);
  Tensor both = ctx.workspace.tensor(hidden.dtype, {T, 2 * width});
  ctx.ops.rms_norm(embed_own_tokens(ctx, layout_, embed_tokens_, batch), enorm_, eps_,
                   both.slice(1, 0, width));
  ctx.ops.rms_norm(hidden, hnorm_, eps_, both.slice(1, width, 2 * width));
  Tensor residual = eh_proj_.forward(ctx, both);  // [T, hidden]
  Tensor h = ctx.workspace.tensor(hidden.dtype, {T, width});
  ctx.ops.rms_norm(residual, layer_.input_layernorm, eps_, h);
  run_layer(ctx, layout_, layer_, norm_, eps_, batch, cache, residual, h);
  return h;
}

Tensor MtpModule::logits(ExecContext& ctx, const ModelBatch& batch, const Tensor& hidden) const {
  return logits_of_rows(ctx, layout_, head_, batch, hidden);
}

}  // namespace shoal
