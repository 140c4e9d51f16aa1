#include "runtime/model/gqa_attention.h"

#include "runtime/model/decoder.h"
#include "runtime/model/rope.h"

namespace shoal {

Range kv_heads_of(const ModelConfig& config, Range heads) {
  const int64_t group = config.num_attention_heads / config.num_key_value_heads;
  return {heads.begin / group, (heads.end - 1) / group + 1};
}

int64_t local_kv_heads(const ModelConfig& config, const ParallelLayout& layout) {
  return config.is_mla() ? 0 : kv_heads_of(config, attention_heads_of(config, layout)).size();
}

GqaAttention::GqaAttention(const ModelConfig& c, const std::string& name, Range heads,
                           Tensor rope_table, WeightSource& source)
    : heads_(heads.size()),
      kv_heads_(kv_heads_of(c, heads).size()),
      head_dim_(c.head_dim),
      head_map_{static_cast<int32_t>(c.num_attention_heads / c.num_key_value_heads),
                static_cast<int32_t>(heads.begin),
                static_cast<int32_t>(kv_heads_of(c, heads).begin)},
      softmax_scale_(attention_softmax_scale(c)),
      rope_table_(rope_table) {
  const Range kv = kv_heads_of(c, heads);
  const Range q_rows{heads.begin * head_dim_, heads.end * head_dim_};
  const Range kv_rows{kv.begin * head_dim_, kv.end * head_dim_};
  const int64_t all_q = c.num_attention_heads * head_dim_, all_kv = c.num_key_value_heads * head_dim_;
  q_proj_.load(source, name + ".q_proj", all_q, c.hidden_size, q_rows, c.attention_bias);
  k_proj_.load(source, name + ".k_proj", all_kv, c.hidden_size, kv_rows, c.attention_bias);
  v_proj_.load(source, name + ".v_proj", all_kv, c.hidden_size, kv_rows, c.attention_bias);
  o_proj_.load(source, name + ".o_proj", c.hidden_size, all_q, q_rows);
}

Tensor GqaAttention::forward(ExecContext& ctx, const Tensor& x, const ModelBatch& batch,
                             const KvCache::Layer& cache) const {
  const int64_t T = batch.num_tokens;
  Tensor q = q_proj_.forward(ctx, x).split_last(heads_, head_dim_);  // [T, heads, head_dim]
  Tensor k = k_proj_.forward(ctx, x);                                // [T, kv_heads * head_dim]
  Tensor v = v_proj_.forward(ctx, x);
  ctx.ops.rope(q, batch.positions, rope_table_, /*interleaved=*/false);
  ctx.ops.rope(k.split_last(kv_heads_, head_dim_), batch.positions, rope_table_, false);
  ctx.ops.write_cache(k, batch.slots, cache.k);
  ctx.ops.write_cache(v, batch.slots, cache.v);
  Tensor out = ctx.workspace.tensor(x.dtype, {T, heads_, head_dim_});
  ctx.ops.gqa_attention(q, cache.k, cache.v, batch.all, head_map_, softmax_scale_, out);
  return o_proj_.forward(ctx, out.reshape({T, heads_ * head_dim_}));
}

}  // namespace shoal
