// The multi-token-prediction layer of DeepSeek-V3 (arXiv 2412.19437, 2.2): from the main model's
// hidden state of token i and the embedding of token i + 1 it predicts token i + 2. Stored as layer
// num_hidden_layers of the checkpoint, with its own copies of embedding and head.
#pragma once

#include "parallel/embedding.h"
#include "parallel/linear.h"
#include "runtime/model/decoder.h"

namespace shoal {

class MtpModule {
 public:
  MtpModule(const ModelConfig& config, const ParallelLayout& layout, WeightSource& source,
            DecoderLayer layer);

  // `batch`: the tokens i + 1 at positions i; `hidden`: what Model::forward gave for the tokens i, row
  // by row. `cache`: this layer's own. Returns the normalised state, [T, hidden].
  Tensor forward(ExecContext& ctx, const ModelBatch& batch, const Tensor& hidden,
                 const KvCache::Layer& cache) const;
  // As Model::logits.
  Tensor logits(ExecContext& ctx, const ModelBatch& batch, const Tensor& hidden) const;

 private:
  const ParallelLayout layout_;
  const float eps_;
  VocabParallelEmbedding embed_tokens_;
  Tensor enorm_, hnorm_;      // [hidden]
  ReplicatedLinear eh_proj_;  // [hidden, 2 * hidden], the embedding's half first
  DecoderLayer layer_;
  Tensor norm_;               // [hidden]
  ParallelLmHead head_;
};

}  // namespace shoal
