#include "parallel/expert_parallel.h"

#include <cstring>
#include <numeric>
#include <vector>

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

}  // namespace

Tensor dispatch_and_combine(ExecContext& ctx, const ShardTable& expert_ranges, const Tensor& x,
                            const Tensor& expert_ids, const Tensor& weights,
                            const LocalExperts& local_experts) {
  const int64_t tokens = x.dim(0);
  const int64_t hidden = x.dim(1);
  const int64_t top_k = expert_ids.dim(1);
  const int64_t ranks = ctx.comm.size();
  SHOAL_CHECK(static_cast<int64_t>(expert_ranges.size()) == ranks, "{} expert ranges, {} ranks",
              expert_ranges.size(), ranks);
  SHOAL_CHECK(expert_ids.contiguous() && weights.contiguous() && expert_ids.dim(0) == tokens &&
                  weights.dim(0) == tokens && weights.dim(1) == top_k,
              "x {}, ids {}, weights {}", x.shape_string(), expert_ids.shape_string(),
              weights.shape_string());
  const Tensor out = ctx.workspace.tensor(x.dtype, {tokens, hidden});
  Workspace::Scope scope(ctx.workspace);
  Device& device = ctx.workspace.device();

  std::vector<int32_t> ids(tokens * top_k);
  std::vector<int32_t> weight_bits(tokens * top_k);
  if (tokens > 0) {
    device.copy_to_host(ids.data(), expert_ids.data, expert_ids.num_bytes());
    device.copy_to_host(weight_bits.data(), weights.data, weights.num_bytes());
  }
  const SendPlan plan = plan_sends(expert_ranges, ids, tokens, top_k);
  const int64_t sent = static_cast<int64_t>(plan.token.size());
  std::vector<int64_t> recv_rows(ranks);
  ctx.comm.all_to_all_counts(plan.rows_per_rank, recv_rows);
  const int64_t received = std::accumulate(recv_rows.begin(), recv_rows.end(), int64_t{0});

  // Dispatch the choices: ids and the bits of the weights in one small exchange, [rows, 2 top_k].
  std::vector<int32_t> packed(sent * 2 * top_k);
  for (int64_t i = 0; i < sent; ++i) {
    const int64_t from = plan.token[i] * top_k;
    std::memcpy(&packed[i * 2 * top_k], &ids[from], top_k * 4);
    std::memcpy(&packed[i * 2 * top_k + top_k], &weight_bits[from], top_k * 4);
  }
  const Tensor send_choices =
      ctx.workspace.from_host(DType::kI32, packed.data(), {sent, 2 * top_k});
  const Tensor recv_choices = ctx.workspace.tensor(DType::kI32, {received, 2 * top_k});
  ctx.comm.all_to_all_rows(send_choices, plan.rows_per_rank, recv_choices, recv_rows);

  // Dispatch the tokens.
  const Tensor send_x = ctx.workspace.tensor(x.dtype, {sent, hidden});
  if (sent > 0) {
    ctx.ops.gather_rows(x, ctx.workspace.from_host(DType::kI32, plan.token.data(), {sent}), send_x);
  }
  const Tensor recv_x = ctx.workspace.tensor(x.dtype, {received, hidden});
  ctx.comm.all_to_all_rows(send_x, plan.rows_per_rank, recv_x, recv_rows);

  // This rank's experts, for everybody's tokens.
  Tensor partial = recv_x;  // [received, hidden]
  if (received > 0) {
    packed.resize(received * 2 * top_k);
    device.copy_to_host(packed.data(), recv_choices.data, recv_choices.num_bytes());
    ids.resize(received * top_k);
    weight_bits.resize(received * top_k);
    for (int64_t i = 0; i < received; ++i) {
      std::memcpy(&ids[i * top_k], &packed[i * 2 * top_k], top_k * 4);
      std::memcpy(&weight_bits[i * top_k], &packed[i * 2 * top_k + top_k], top_k * 4);
    }
    partial =
        local_experts(recv_x, ctx.workspace.from_host(DType::kI32, ids.data(), {received, top_k}),
                      ctx.workspace.from_host(DType::kF32, weight_bits.data(), {received, top_k}));
  }

  // Combine: one partial row comes back for every row that was sent, and they add in rank order.
  const Tensor returned = ctx.workspace.tensor(x.dtype, {sent, hidden});
  ctx.comm.all_to_all_rows(partial, recv_rows, returned, plan.rows_per_rank);
  if (tokens > 0) {
    const std::vector<float> ones(tokens * ranks, 1.0f);
    ctx.ops.combine(returned,
                    ctx.workspace.from_host(DType::kI32, plan.slot.data(), {tokens, ranks}),
                    ctx.workspace.from_host(DType::kF32, ones.data(), {tokens, ranks}), out);
  }
  return out;
}

}  // namespace shoal
