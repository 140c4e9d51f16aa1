// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, 2.1), cut by heads.
#pragma once

#include "parallel/linear.h"
#include "runtime/model/attention.h"

namespace shoal {

class MlaAttention : public Attention {
 public:
  // `heads`: those of this rank. `rope_table`: [max_position, qk_rope].
  MlaAttention(const ModelConfig& config, const ModelOptions& options, const std::string& name,
               Range heads, Tensor rope_table, WeightSource& source, ExecContext& ctx);

  Tensor forward(ExecContext& ctx, const Tensor& x, const ModelBatch& batch,
                 const KvCache::Layer& cache) const override;

 private:
  void load_absorbed(const ModelOptions& options, const std::string& name, WeightSource& source,
                     ExecContext& ctx);
  // q of the rows whose tokens are generated, against the latent itself.
  void absorbed(ExecContext& ctx, const Tensor& q, const PagedBatch& batch, const CacheTensor& cache,
                const Tensor& out) const;
  // q of one sequence's prompt rows, against keys and values expanded from the latent.
  void expanded(ExecContext& ctx, const Tensor& q, const Tensor& positions, const Tensor& block_table,
                int64_t context_len, const CacheTensor& cache, int32_t page_size, const Tensor& out) const;

  const int64_t heads_, nope_, rope_, v_, lora_;
  const bool interleave_;
  const float eps_, softmax_scale_;
  Tensor rope_table_;

  ColumnParallelLinear q_proj_;    // without q_lora
  ReplicatedLinear q_a_proj_;      // with it
  Tensor q_a_layernorm_;           // [q_lora]
  ColumnParallelLinear q_b_proj_;  // [heads * (nope + rope), q_lora]
  bool q_lora_ = false;
  ReplicatedLinear kv_a_proj_with_mqa_;  // [kv_lora + rope, hidden]
  Tensor kv_a_layernorm_;                // [kv_lora]
  ColumnParallelLinear kv_b_proj_;       // [heads * (nope + v), kv_lora]
  RowParallelLinear o_proj_;             // [hidden, heads * v]
  // kv_b_proj per head, arranged for the absorbed form.
  Tensor w_uk_t_;  // [heads, kv_lora, nope]
  Tensor w_uv_;    // [heads, v, kv_lora]
};

}  // namespace shoal
