// Grouped-query attention (Qwen2, Llama), cut by query heads. A KV head whose query heads fall on two
// ranks is held by both.
#pragma once

#include "parallel/linear.h"
#include "runtime/model/attention.h"

namespace shoal {

// KV heads that query heads [heads.begin, heads.end) read.
Range kv_heads_of(const ModelConfig& config, Range heads);
// How many of them a rank holds; 0 for MLA, whose heads share one latent.
int64_t local_kv_heads(const ModelConfig& config, const ParallelLayout& layout);

class GqaAttention : public Attention {
 public:
  // `rope_table`: [max_position, head_dim].
  GqaAttention(const ModelConfig& config, const std::string& name, Range heads, Tensor rope_table,
               WeightSource& source);

  Tensor forward(ExecContext& ctx, const Tensor& x, const ModelBatch& batch,
                 const KvCache::Layer& cache) const override;

 private:
  const int64_t heads_, kv_heads_, head_dim_;
  const Ops::HeadMap head_map_;
  const float softmax_scale_;
  Tensor rope_table_;
  ColumnParallelLinear q_proj_;  // [heads * head_dim, hidden]
  ColumnParallelLinear k_proj_;  // [kv_heads * head_dim, hidden]
  ColumnParallelLinear v_proj_;
  RowParallelLinear o_proj_;     // [hidden, heads * head_dim]
};

}  // namespace shoal
