// Exchange of tokens between the ranks that hold them and the ranks that hold their experts.
//
// Two ways, the same result up to rounding (docs/parallelism.md has bytes and crossover):
//   replicated  every rank has every token; it computes its own experts' share of all of them; the
//               caller's all-reduce adds the shares.
//   all-to-all  tokens are scattered; a TokenExchange sends each row once to every rank that holds
//   one
//               of its experts, and brings one weighted partial row back from each of those.
#pragma once

#include <vector>

#include "parallel/exec_context.h"
#include "parallel/shard.h"

namespace shoal {

// One exchange, in stages that a caller may issue apart, with work of other tokens between them:
//   construction  packs the choices; nothing leaves this rank
//   dispatch      the host waits for the ids (Device::copy_to_host), learns how many rows come, and
//                 issues both exchanges of the way out
//   the caller    writes to partial(), for each row that came, the weighted sum of this rank's
//   experts combine       issues the way back and the sum over ranks
// Tensors come from the workspace of the context that each stage is given, and must last until what
// combine() returned has been used. A context may differ by stage.
class TokenExchange {
 public:
  // x, expert_ids, weights: the tokens of this rank only; they must last until combine(), as must
  // `expert_ranges`.
  TokenExchange(ExecContext& ctx, const ShardTable& expert_ranges,
                const Tensor& x,           // [T, hidden]
                const Tensor& expert_ids,  // [T, top_k] I32
                const Tensor& weights);    // [T, top_k] F32

  void dispatch(ExecContext& ctx);
  // What came: expert_ids may name experts of other ranks, which contribute nothing here.
  const Tensor& x() const { return recv_x_; }              // [rows, hidden]
  const Tensor& expert_ids() const { return recv_ids_; }   // [rows, top_k] I32
  const Tensor& weights() const { return recv_weights_; }  // [rows, top_k] F32
  const Tensor& partial() const { return partial_; }       // [rows, hidden]
  // [T, hidden]: the full sums of this rank's tokens, added in rank order.
  Tensor combine(ExecContext& ctx);

 private:
  const ShardTable& expert_ranges_;
  Tensor x_, expert_ids_;
  Tensor choices_;  // [T, 2 top_k] F32: the bits of the ids, then the weights
  std::vector<int64_t> sent_rows_, recv_rows_;  // by rank
  std::vector<int32_t> slot_;                   // [T, ranks]: sent row of (token, rank), or -1
  Tensor recv_x_, recv_ids_, recv_weights_, partial_;
};

}  // namespace shoal
