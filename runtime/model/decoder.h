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

// The first half of a layer: attends, adds to `residual`, and leaves the norm for the feed-forward in `h`.
void attend(ExecContext& ctx, const ParallelLayout& layout, const DecoderLayer& layer, float eps,
            const ModelBatch& batch, const KvCache::Layer& cache, const Tensor& residual,
            const Tensor& h);

// One layer: attends, feeds forward and leaves the sum in `residual` and its norm by next_norm (the
// next layer's input_layernorm, or the final norm) in `h`, which held the normed input. [T, hidden] both.
void run_layer(ExecContext& ctx, const ParallelLayout& layout, const DecoderLayer& layer,
               const Tensor& next_norm, float eps, const ModelBatch& batch,
               const KvCache::Layer& cache, const Tensor& residual, const Tensor& h);

// The embeddings of this rank's tokens: [T, hidden].
Tensor embed_own_tokens(ExecContext& ctx, const ParallelLayout& layout,
                        const VocabParallelEmbedding& embedding, const ModelBatch& batch);

// The logits of batch.logits_rows of `hidden`: see Model::logits.
Tensor logits_of_rows(ExecContext& ctx, const ParallelLayout& layout, const ParallelLmHead& head,
                      const ModelBatch& batch, const Tensor& hidden);

// Makes a model's layers one by one, for what holds only some of them.
class LayerLoader {
 public:
  virtual ~LayerLoader() = default;
  // Its weights come from `source`, which has to outlive it, as this loader has to.
  virtual DecoderLayer load(int64_t index, WeightSource& source) = 0;
};
// The tables that layers share come from `source`; everything given has to outlive the loader.
std::unique_ptr<LayerLoader> make_layer_loader(const ModelConfig& config,
                                               const ParallelLayout& layout,
                                               const ModelOptions& options, WeightSource& source,
                                               ExecContext& ctx);

class MtpModule;

class Decoder : public Model {
 public:
  Decoder(const ModelConfig& config, const ParallelLayout& layout, WeightSource& source,
          std::vector<DecoderLayer> layers, std::unique_ptr<MtpModule> mtp);
  ~Decoder() override;

  const ModelConfig& config() const override { return config_; }
  Tensor forward(ExecContext& ctx, const ModelBatch& batch, const KvCache& cache) const override;
  Tensor logits(ExecContext& ctx, const ModelBatch& batch, const Tensor& hidden) const override;
  const MtpModule* mtp() const override { return mtp_.get(); }
  std::vector<std::span<const uint64_t>> expert_rows() const override;

 private:
  const ModelConfig config_;
  const ParallelLayout layout_;
  VocabParallelEmbedding embed_tokens_;
  std::vector<DecoderLayer> layers_;
  Tensor norm_;  // [hidden]
  ParallelLmHead lm_head_;
  std::unique_ptr<MtpModule> mtp_;
};

// The heads of this rank: all of them under DP attention. Throws InvalidInput for more ranks than heads.
Range attention_heads_of(const ModelConfig& config, const ParallelLayout& layout);

// One table for all layers, on the device: [options.max_model_len, dim].
Tensor load_rope_table(const ModelConfig& config, const ModelOptions& options, int64_t dim,
                       WeightSource& source, Device& device);

// deepseek.cpp and dense.cpp: the layers of each family.
std::unique_ptr<LayerLoader> make_deepseek_layers(const ModelConfig& config,
                                                  const ParallelLayout& layout,
                                                  const ModelOptions& options, WeightSource& source,
                                                  ExecContext& ctx);
std::unique_ptr<LayerLoader> make_dense_layers(const ModelConfig& config, const ParallelLayout& layout,
                                               const ModelOptions& options, WeightSource& source,
                                               ExecContext& ctx);
std::unique_ptr<Model> make_deepseek(const ModelConfig& config, const ParallelLayout& layout,
                                     const ModelOptions& options, WeightSource& source,
                                     ExecContext& ctx);
std::unique_ptr<Model> make_dense(const ModelConfig& config, const ParallelLayout& layout,
                                  const ModelOptions& options, WeightSource& source,
                                  ExecContext& ctx);

}  // namespace shoal
