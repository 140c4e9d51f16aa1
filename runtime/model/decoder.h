// Decoder: the pre-norm transformer that all our models are; they differ in the attention and
// feed-forward of their layers, which deepseek.cpp and dense.cpp put in.
#pragma once

#include <memory>
#include <vector>

#include "parallel/embedding.h"
#include "runtime/model/attention.h"
#include "runtime/model/feed_forward.h"

namespace shoal {

struct DecoderLayer {
  Tensor input_layernorm;           // [hidden]
  std::unique_ptr<Attention> self_attn;
  Tensor post_attention_layernorm;  // [hidden]
  std::unique_ptr<FeedForward> mlp;
};

class Decoder : public Model {
 public:
  Decoder(const ModelConfig& config, const ParallelLayout& layout, WeightSource& source,
          std::vector<DecoderLayer> layers, std::pair<int64_t, int64_t> cache_row);

  const ModelConfig& config() const override { return config_; }
  std::pair<int64_t, int64_t> cache_row() const override { return cache_row_; }
  Tensor forward(ExecContext& ctx, const ModelBatch& batch, const KvCache& cache) override;

 private:
  Tensor embed(ExecContext& ctx, const ModelBatch& batch) const;
  Tensor logits(ExecContext& ctx, const ModelBatch& batch, const Tensor& hidden) const;

  const ModelConfig config_;
  const ParallelLayout layout_;
  const std::pair<int64_t, int64_t> cache_row_;
  VocabParallelEmbedding embed_tokens_;
  std::vector<DecoderLayer> layers_;
  Tensor norm_;  // [hidden]
  ParallelLmHead lm_head_;
};

// The heads of this rank: all of them under DP attention. Throws InvalidInput for more ranks than heads.
Range attention_heads_of(const ModelConfig& config, const ParallelLayout& layout);

// One table for all layers, on the device: [options.max_model_len, dim].
Tensor load_rope_table(const ModelConfig& config, const ModelOptions& options, int64_t dim,
                       WeightSource& source, Device& device);

// deepseek.cpp and dense.cpp: the layers of each family.
std::unique_ptr<Model> make_deepseek(const ModelConfig& config, const ParallelLayout& layout,
                                     const ModelOptions& options, WeightSource& source,
                                     ExecContext& ctx);
std::unique_ptr<Model> make_dense(const ModelConfig& config, const ParallelLayout& layout,
                                  const ModelOptions& options, WeightSource& source,
                                  ExecContext& ctx);

}  // namespace shoal
