// Exchange of tokens between the ranks that hold them and the ranks that hold their experts.
//
// Two ways, the same result up to rounding (docs/parallelism.md has bytes and crossover):
//   replicated  every rank has every token; it computes its own experts' share of all of them; the
//               caller's all-reduce adds the shares.
//   all-to-all  tokens are scattered; `dispatch` sends each row once to every rank that holds one of
//               its experts, `combine` brings one weighted partial row back from each of those.
#pragma once

#include <functional>
#include <vector>

#include "parallel/exec_context.h"
#include "parallel/shard.h"

namespace shoal {

// Computes the local experts for `x` and returns their weighted sum per row: [rows, hidden].
// expert_ids may name experts of other ranks: those contribute nothing here.
using LocalExperts =
    std::function<Tensor(const Tensor& x,             // [rows, hidden]
                         const Tensor& expert_ids,    // [rows, top_k] I32
                         const Tensor& weights)>;     // [rows, top_k] F32

// x, expert_ids, weights: the tokens of this rank only. Returns [T, hidden]: the full sums of this
// rank's tokens, added in rank order.
Tensor dispatch_and_combine(ExecContext& ctx, const ShardTable& expert_ranges,
                            const Tensor& x,           // [T, hidden]
                            const Tensor& expert_ids,  // [T, top_k] I32
                            const Tensor& weights,     // [T, top_k] F32
                            const LocalExperts& local_experts);

}  // namespace shoal
