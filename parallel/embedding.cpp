#include "parallel/embedding.h"

#include <limits>
#include <numeric>
#include <vector>

namespace shoal {
namespace {

// The rows of a vocabulary-cut matrix that `rank` holds.
Weight load_rows(WeightSource& source, const std::string& name, int64_t vocab, int64_t hidden,
                 Range rows) {
  return source.matrix(name, vocab, hidden, rows, {0, hidden});
}

// Where the elements of [T, vocab] stand in the concatenation of [T, vocab of rank r] over r, in
// blocks of `block` elements, which divides every rank's vocabulary.
std::vector<int32_t> row_major_order(const ShardTable& ranges, int64_t tokens, int64_t block) {
  std::vector<int32_t> order;
  order.reserve(tokens * ranges.back().end / block);
  for (int64_t t = 0; t < tokens; ++t) {
    for (const Range& range : ranges) {
      const int64_t blocks = range.size() / block;
      const int64_t first = tokens * (range.begin / block) + t * blocks;
      for (int64_t b = 0; b < blocks; ++b) order.push_back(static_cast<int32_t>(first + b));
    }
  }
  return order;
}

}  // namespace

void VocabParallelEmbedding::load(WeightSource& source, const std::string& name, int64_t vocab,
                                  int64_t hidden, const ShardTable& vocab_ranges, int rank) {
  rows_ = vocab_ranges.at(rank);
  weight_ = load_rows(source, name, vocab, hidden, rows_);
  if (weight_.data.dtype == DType::kF8E4M3) {
    throw_invalid("{}.weight is stored as {}; an embedding has to be float32, float16 or bfloat16",
                  name, dtype_name(weight_.data.dtype));
  }
}

Tensor VocabParallelEmbedding::forward(ExecContext& ctx, const Tensor& ids) const {
  const Tensor out = ctx.workspace.tensor(DType::kF32, {ids.dim(0), weight_.k()});  // [T, hidden]
  // Each row is held by one rank and is zero on the others: the sum is exact.
  ctx.ops.embedding(ids, weight_.data, rows_.begin, out);
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

  // Rank by rank -> row by row, as one gather of blocks: 128 elements for every real vocabulary.
  int64_t block = 0;
  for (const Range& range : vocab_ranges_) block = std::gcd(block, range.size());
  const int64_t blocks = tokens * vocab / block;
  SHOAL_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "{} blocks of logits", blocks);
  const std::vector<int32_t> order = row_major_order(vocab_ranges_, tokens, block);
  const Tensor out = ctx.workspace.tensor(DType::kF32, {tokens, vocab});
  ctx.ops.gather_rows(gathered.reshape({blocks, block}),
                      ctx.workspace.from_host(DType::kI32, order.data(), {blocks}),
                      out.reshape({blocks, block}));
  return out;
}

}  // namespace shoal
