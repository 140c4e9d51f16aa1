// Token embedding and output head, cut by vocabulary rows.
#pragma once

#include "parallel/exec_context.h"
#include "parallel/shard.h"
#include "parallel/weight_source.h"

namespace shoal {

class VocabParallelEmbedding {
 public:
  void load(WeightSource& source, const std::string& name, int64_t vocab, int64_t hidden,
            const ShardTable& vocab_ranges, int rank);
  // The same rows on all ranks in, the summed rows on all ranks out: [T] -> [T, hidden].
  Tensor forward(ExecContext& ctx, const Tensor& ids) const;
  const Weight& weight() const { return weight_; }

 private:
  Weight weight_;  // [vocab held, hidden]
  Range rows_;
};

class ParallelLmHead {
 public:
  void load(WeightSource& source, const std::string& name, int64_t vocab, int64_t hidden,
            const ShardTable& vocab_ranges, int rank);
  // Shares the embedding's rows (tie_word_embeddings).
  void tie(const VocabParallelEmbedding& embedding, const ShardTable& vocab_ranges);
  // [T, hidden], the same on all ranks -> [T, vocab] on rank 0; undefined elsewhere.
  Tensor forward(ExecContext& ctx, const Tensor& x) const;

 private:
  Weight weight_;  // [vocab held, hidden]
  ShardTable vocab_ranges_;
};

}  // namespace shoal
