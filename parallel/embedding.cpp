#include "parallel/embedding.h"

#include <vector>

namespace shoal {
namespace {

// The rows of a vocabulary-cut matrix that `rank` holds.
Weight load_rows(WeightSource& source, const std::string& name, int64_t vocab, int64_t hidden,
                 Range rows) {
  return source.matrix(name, vocab, hidden, rows, {0, hidden});
}

}  // namespace

void VocabParallelEmbedding::load(WeightSource& source, const std::string& name, int64_t vocab,
                                  int64_t hidden, const ShardTable& vocab_ranges, int rank) {
  rows_ = vocab_ranges.at(rank);
  weight_ = load_rows(source, name, vocab, hidden, rows_);
}

Tensor VocabParallelEmbedding::forward(ExecContext& ctx, const Tensor& ids) const {
  const Tensor out = ctx.workspace.tensor(ctx.activation_dtype, {ids.dim(0), weight_.k()});
  // Each row is held by one rank and is zero on the others: the sum is exact.
  ctx.ops.embedding(ids, weight_, rows_.begin, out);
  ctx.comm.all_reduce_sum(out);
  return out;
}

void ParallelLmHead::load(WeightSource& source, const std::string& name, int64_t vocab,
                          int64_t hidden, const ShardTable& vocab_ranges, int rank) {
  weight_ = load_rows(source, name, vocab, hidden, vocab_ranges.at(rank));
  vocab_ranges_ = vocab_ranges;
}

void ParallelLmHead::tie(const VocabParallelEmbedding& embedding, const ShardTable& vocab_ranges) {
  weight_ = embedding.weight();
  vocab_ranges_ = vocab_ranges;
}

Tensor ParallelLmHead::forward(ExecContext& ctx, const Tensor& x) const {
  const int64_t tokens = x.dim(0);
  const int64_t vocab = vocab_ranges_.back().end;
  const Tensor local = ctx.workspace.tensor(DType::kF32, {tokens, weight_.n()});  // [T, vocab held]
  if (local.num_elements() > 0) ctx.ops.linear(x, weight_, Tensor(), local);
  if (ctx.comm.size() == 1) return local;

  std::vector<int64_t> elements = sizes_of(vocab_ranges_);
  for (int64_t& count : elements) count *= tokens;
  const bool root = ctx.comm.rank() == 0;
  Tensor gathered;  // [T * vocab] on rank 0: rank by rank
  if (root) gathered = ctx.workspace.tensor(DType::kF32, {tokens * vocab});
  ctx.comm.gather_rows_to_root(local, elements, gathered);
  if (!root) return Tensor();
  if (tokens <= 1) return gathered.reshape({tokens, vocab});

  // Rank by rank -> row by row.
  const Tensor out = ctx.workspace.tensor(DType::kF32, {tokens, vocab});
  for (const Range& range : vocab_ranges_) {
    if (range.size() == 0) continue;
    const Tensor part = gathered.slice(0, tokens * range.begin, tokens * range.end);
    ctx.ops.copy(part.reshape({tokens, range.size()}), out.slice(1, range.begin, range.end));
  }
  return out;
}

}  // namespace shoal
