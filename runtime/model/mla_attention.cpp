#include "runtime/model/mla_attention.h"

#include <algorithm>

#include "runtime/model/rope.h"

namespace shoal {
namespace {

// Keys expanded at a time: bounds the workspace at chunk * heads * (nope + v) floats. A multiple of
// the kernels' key block, so that the order of additions does not depend on where a chunk ends.
constexpr int64_t kExpandChunk = 512;

// DeepSeek's modeling code builds the two norms of the latents with RMSNorm's default, whatever
// rms_norm_eps says.
constexpr float kLatentNormEps = 1e-6f;

}  // namespace

MlaAttention::MlaAttention(const ModelConfig& c, const ModelOptions& options, const std::string& name,
                           Range heads, Tensor rope_table, WeightSource& source, ExecContext& ctx)
    : heads_(heads.size()),
      nope_(c.qk_nope_head_dim),
      rope_(c.qk_rope_head_dim),
      v_(c.v_head_dim),
      lora_(c.kv_lora_rank),
      interleave_(c.rope_interleave),
      eps_(kLatentNormEps),
      softmax_scale_(attention_softmax_scale(c)),
      rope_table_(rope_table),
      q_lora_(c.q_lora_rank > 0) {
  const auto rows = [&](int64_t per_head) {
    return Range{heads.begin * per_head, heads.end * per_head};
  };
  const int64_t all = c.num_attention_heads, qk = nope_ + rope_;
  if (q_lora_) {
    q_a_proj_.load(source, name + ".q_a_proj", c.q_lora_rank, c.hidden_size, c.attention_bias);
    q_a_layernorm_ =
        source.vector(name + ".q_a_layernorm.weight", c.q_lora_rank, {0, c.q_lora_rank});
    q_b_proj_.load(source, name + ".q_b_proj", all * qk, c.q_lora_rank, rows(qk));
  } else {
    q_proj_.load(source, name + ".q_proj", all * qk, c.hidden_size, rows(qk));
  }
  kv_a_proj_with_mqa_.load(source, name + ".kv_a_proj_with_mqa", lora_ + rope_, c.hidden_size,
                           c.attention_bias);
  kv_a_layernorm_ = source.vector(name + ".kv_a_layernorm.weight", lora_, {0, lora_});
  kv_b_proj_.load(source, name + ".kv_b_proj", all * (nope_ + v_), lora_, rows(nope_ + v_));
  o_proj_.load(source, name + ".o_proj", c.hidden_size, all * v_, rows(v_));
  load_absorbed(options, name, source, ctx);
}

void MlaAttention::load_absorbed(const ModelOptions& options, const std::string& name,
                                 WeightSource& source, ExecContext& ctx) {
  w_uk_t_ = source.allocate(name + ".w_uk_t", options.dtype, {heads_, lora_, nope_});
  w_uv_ = source.allocate(name + ".w_uv", options.dtype, {heads_, v_, lora_});

  Workspace::Scope scope(ctx.workspace);
  Device& device = ctx.workspace.device();
  Tensor kv_b = ctx.workspace.tensor(DType::kF32, {heads_ * (nope_ + v_), lora_});
  ctx.ops.dequantize(kv_b_proj_.weight(), kv_b);
  std::vector<float> values(kv_b.num_elements());
  device.copy_to_host(values.data(), kv_b.data, kv_b.num_bytes());
  std::vector<float> transposed(lora_ * nope_);
  for (int64_t h = 0; h < heads_; ++h) {
    const std::span<const float> head =
        std::span<const float>(values).subspan(h * (nope_ + v_) * lora_, (nope_ + v_) * lora_);
    for (int64_t i = 0; i < nope_; ++i) {
      for (int64_t j = 0; j < lora_; ++j) transposed[j * nope_ + i] = head[i * lora_ + j];
    }
    store_values(device, transposed, w_uk_t_.slice(0, h, h + 1));
    store_values(device, head.subspan(nope_ * lora_), w_uv_.slice(0, h, h + 1));
  }
}

Tensor MlaAttention::forward(ExecContext& ctx, const Tensor& x, const ModelBatch& batch,
                             const KvCache::Layer& cache) const {
  const int64_t T = batch.num_tokens, D = batch.num_decode_tokens;
  // Beside each other what reads x: products in FP8 share its quantisation.
  Tensor q_a;                                           // [T, q_lora]
  if (q_lora_) q_a = q_a_proj_.forward(ctx, x);
  Tensor latent = kv_a_proj_with_mqa_.forward(ctx, x);  // [T, kv_lora + rope]
  Tensor q;                                             // [T, heads, nope + rope]
  if (q_lora_) {
    ctx.ops.rms_norm(q_a, q_a_layernorm_, eps_, q_a);
    q = q_b_proj_.forward(ctx, q_a).split_last(heads_, nope_ + rope_);
  } else {
    q = q_proj_.forward(ctx, x).split_last(heads_, nope_ + rope_);
  }
  ctx.ops.rope(q.slice(2, nope_, nope_ + rope_), batch.positions, rope_table_, interleave_);

  Tensor c_kv = latent.slice(1, 0, lora_), k_pe = latent.slice(1, lora_, lora_ + rope_);
  ctx.ops.rms_norm(c_kv, kv_a_layernorm_, eps_, c_kv);
  ctx.ops.rope(k_pe.split_last(1, rope_), batch.positions, rope_table_, interleave_);
  ctx.ops.write_cache(latent, batch.slots, cache.k);

  Tensor out = ctx.workspace.tensor(x.dtype, {T, heads_, v_});
  if (D > 0) absorbed(ctx, q.slice(0, 0, D), batch.decode, cache.k, out.slice(0, 0, D));
  for (const ModelBatch::Prefill& p : batch.prefills) {
    expanded(ctx, q.slice(0, p.row_begin, p.row_end), batch.positions.slice(0, p.row_begin, p.row_end),
             batch.all.block_tables.slice(0, p.sequence, p.sequence + 1), p.context_len, cache.k,
             batch.all.page_size, out.slice(0, p.row_begin, p.row_end));
  }
  return o_proj_.forward(ctx, out.reshape({T, heads_ * v_}));
}

void MlaAttention::absorbed(ExecContext& ctx, const Tensor& q, const PagedBatch& batch,
                            const CacheTensor& cache, const Tensor& out) const {
  Workspace::Scope scope(ctx.workspace);
  const int64_t T = q.dim(0);
  Tensor q_latent = ctx.workspace.tensor(q.dtype, {T, heads_, lora_ + rope_});
  ctx.ops.head_linear(q.slice(2, 0, nope_), w_uk_t_, q_latent.slice(2, 0, lora_));
  ctx.ops.copy(q.slice(2, nope_, nope_ + rope_), q_latent.slice(2, lora_, lora_ + rope_));
  Tensor o_latent = ctx.workspace.tensor(q.dtype, {T, heads_, lora_});
  ctx.ops.mla_decode(q_latent, cache, batch, softmax_scale_, o_latent);
  ctx.ops.head_linear(o_latent, w_uv_, out);
}

void MlaAttention::expanded(ExecContext& ctx, const Tensor& q, const Tensor& positions,
                            const Tensor& block_table, int64_t context_len, const CacheTensor& cache,
                            int32_t page_size, const Tensor& out) const {
  Workspace::Scope scope(ctx.workspace);
  const int64_t T = q.dim(0);
  AttentionState state{ctx.workspace.tensor(DType::kF32, {T, heads_, v_}),
                       ctx.workspace.tensor(DType::kF32, {T, heads_}),
                       ctx.workspace.tensor(DType::kF32, {T, heads_})};
  ctx.ops.begin_state(state);
  for (int64_t begin = 0; begin < context_len; begin += kExpandChunk) {
    Workspace::Scope chunk_scope(ctx.workspace);
    const int64_t end = std::min(begin + kExpandChunk, context_len);
    Tensor rows = ctx.workspace.tensor(q.dtype, {end - begin, lora_ + rope_});
    ctx.ops.gather_cache(cache, block_table.reshape({block_table.dim(1)}), page_size, begin, end, rows);
    Tensor kv = kv_b_proj_.forward(ctx, rows.slice(1, 0, lora_)).split_last(heads_, nope_ + v_);
    ctx.ops.mla_prefill(q, kv, rows.slice(1, lora_, lora_ + rope_), positions, begin, softmax_scale_,
                        state);
  }
  ctx.ops.finish_state(state, out);
}

}  // namespace shoal
