#include "parallel/expert_parallel.h"

#include <numeric>

namespace shoal {
namespace {

// Which token goes where, in the order in which rows are sent: by rank, then by token.
struct SendPlan {
  std::vector<int64_t> rows_per_rank;  // [ranks]
  std::vector<int32_t> token;          // [sent rows]
  std::vector<int32_t> slot;           // [T, ranks]: sent row of (token, rank), or -1
};

// The expert ids come to the host for this: the counts steer MPI and NCCL calls, which take host
// values, and the ids are T * top_k integers beside T * hidden floats.
SendPlan plan_sends(const ShardTable& expert_ranges, const std::vector<int32_t>& ids,
                    int64_t tokens, int64_t top_k) {
  const int64_t ranks = static_cast<int64_t>(expert_ranges.size());
  std::vector<int32_t> owner(expert_ranges.back().end);  // [E]
  for (int64_t r = 0; r < ranks; ++r) {
    for (int64_t e = expert_ranges[r].begin; e < expert_ranges[r].end; ++e) {
      owner[e] = static_cast<int32_t>(r);
    }
  }
  SendPlan plan;
  plan.rows_per_rank.assign(ranks, 0);
  plan.slot.assign(tokens * ranks, -1);
  std::vector<char> wanted(tokens * ranks, 0);
  for (int64_t i = 0; i < tokens * top_k; ++i) {
    if (ids[i] >= 0) wanted[(i / top_k) * ranks + owner.at(ids[i])] = 1;
  }
  for (int64_t r = 0; r < ranks; ++r) {
    for (int64_t t = 0; t < tokens; ++t) {
      if (!wanted[t * ranks + r]) continue;
      plan.slot[t * ranks + r] = static_cast<int32_t>(plan.token.size());
      plan.token.push_back(static_cast<int32_t>(t));
      ++plan.rows_per_rank[r];
    }
  }
  return plan;
}

// Ids and weights travel as one row; the verbs that move rows move floats, and keep every bit.
Tensor as_floats(const Tensor& x) { return Tensor(x.data, DType::kF32, {x.dim(0), x.dim(1)}); }

}  // namespace

TokenExchange::TokenExchange(ExecContext& ctx, const ShardTable& expert_ranges, const Tensor& x,
                             const Tensor& expert_ids, const Tensor& weights)
    : expert_ranges_(expert_ranges), x_(x), expert_ids_(expert_ids) {
  const int64_t tokens = x.dim(0), top_k = expert_ids.dim(1);
  SHOAL_CHECK(static_cast<int64_t>(expert_ranges.size()) == ctx.comm.size(),
              "{} expert ranges, {} ranks", expert_ranges.size(), ctx.comm.size());
  SHOAL_CHECK(expert_ids.contiguous() && weights.contiguous() && expert_ids.dim(0) == tokens &&
                  weights.dim(0) == tokens && weights.dim(1) == top_k,
              "x {}, ids {}, weights {}", x.shape_string(), expert_ids.shape_string(),
              weights.shape_string());
  choices_ = ctx.workspace.tensor(DType::kF32, {tokens, 2 * top_k});
  ctx.ops.copy(as_floats(expert_ids), choices_.slice(1, 0, top_k));
  ctx.ops.copy(weights, choices_.slice(1, top_k, 2 * top_k));
}

void TokenExchange::dispatch(ExecContext& ctx) {
  Workspace& ws = ctx.workspace;
  const int64_t tokens = x_.dim(0), hidden = x_.dim(1), top_k = expert_ids_.dim(1);
  std::vector<int32_t> ids(tokens * top_k);
  ws.device().copy_to_host(ids.data(), expert_ids_.data, expert_ids_.num_bytes());
  SendPlan plan = plan_sends(expert_ranges_, ids, tokens, top_k);
  const int64_t sent = static_cast<int64_t>(plan.token.size());
  sent_rows_ = std::move(plan.rows_per_rank);
  slot_ = std::move(plan.slot);
  recv_rows_.resize(sent_rows_.size());
  ctx.comm.all_to_all_counts(sent_rows_, recv_rows_);
  const int64_t received = std::accumulate(recv_rows_.begin(), recv_rows_.end(), int64_t{0});

  const Tensor rows = ws.from_host(DType::kI32, plan.token.data(), {sent});
  const Tensor send_choices = ws.tensor(DType::kF32, {sent, 2 * top_k});
  const Tensor send_x = ws.tensor(x_.dtype, {sent, hidden});
  ctx.ops.gather_rows(choices_, rows, send_choices);
  ctx.ops.gather_rows(x_, rows, send_x);
  const Tensor recv_choices = ws.tensor(DType::kF32, {received, 2 * top_k});
  recv_x_ = ws.tensor(x_.dtype, {received, hidden});
  ctx.comm.all_to_all_rows(send_choices, sent_rows_, recv_choices, recv_rows_);
  ctx.comm.all_to_all_rows(send_x, sent_rows_, recv_x_, recv_rows_);

  recv_ids_ = ws.tensor(DType::kI32, {received, top_k});
  recv_weights_ = ws.tensor(DType::kF32, {received, top_k});
  ctx.ops.copy(recv_choices.slice(1, 0, top_k), as_floats(recv_ids_));
  ctx.ops.copy(recv_choices.slice(1, top_k, 2 * top_k), recv_weights_);
  partial_ = ws.tensor(x_.dtype, {received, hidden});
}

Tensor TokenExchange::combine(ExecContext& ctx) {
  // One partial row comes back for every row that was sent, and they add in rank order.
  Workspace& ws = ctx.workspace;
  const int64_t tokens = x_.dim(0), hidden = x_.dim(1), ranks = ctx.comm.size();
  const int64_t sent = std::accumulate(sent_rows_.begin(), sent_rows_.end(), int64_t{0});
  const Tensor returned = ws.tensor(x_.dtype, {sent, hidden});
  ctx.comm.all_to_all_rows(partial_, recv_rows_, returned, sent_rows_);
  const Tensor out = ws.tensor(x_.dtype, {tokens, hidden});
  const std::vector<float> ones(tokens * ranks, 1.0f);
  ctx.ops.combine(returned, ws.from_host(DType::kI32, slot_.data(), {tokens, ranks}),
                  ws.from_host(DType::kF32, ones.data(), {tokens, ranks}), out);
  return out;
}

}  // namespace shoal
