// gqa_attention: grouped-query attention over paged K and V.
#include <limits>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_gqa.cpp"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/attention-inl.h"

#ifndef SHOAL_KERNELS_CPU_ATTENTION_GQA_ONCE_
#define SHOAL_KERNELS_CPU_ATTENTION_GQA_ONCE_
namespace shoal {

// Tokens that share the staged keys of a block: decoding it is then small beside attending to it.
inline constexpr int64_t kQueryTokens = 16;
inline constexpr int64_t kRowsPerTile = 4;

struct GqaCall {
  const Tensor& q;
  const CacheTensor& k_cache;
  const CacheTensor& v_cache;
  const PagedBatch& batch;
  const Ops::HeadMap& heads;
  float scale;
  const Tensor& out;
  const std::vector<TokenContext>& contexts;

  // Local query heads [begin, end) that read local KV head `kv`.
  int64_t head_begin(int64_t kv) const {
    return std::max<int64_t>((heads.first_kv_head + kv) * heads.group - heads.first_q_head, 0);
  }
  int64_t head_end(int64_t kv) const {
    return std::min<int64_t>((heads.first_kv_head + kv + 1) * heads.group - heads.first_q_head,
                             q.dim(1));
  }
};

}  // namespace shoal
#endif

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

// Tiles [tile0, tile1) of the rows of a group; scratch: [2, kKeyBlock, head_dim].
void gqa_tiles(const GqaCall& call, const WorkGroup& group, int64_t tile0, int64_t tile1,
               float* scratch) {
  const int64_t dim = call.q.dim(2);
  const int64_t h0 = call.head_begin(group.head), heads = call.head_end(group.head) - h0;
  const int64_t row0 = tile0 * kRowsPerTile;
  const int64_t row1 = std::min(tile1 * kRowsPerTile, group.num_tokens * heads);
  std::vector<QueryRow> rows;
  std::vector<float> maxima(row1 - row0, -std::numeric_limits<float>::infinity());
  std::vector<float> sums(row1 - row0, 0.0f);
  int64_t keys = 0;
  for (int64_t r = row0; r < row1; ++r) {
    const int64_t t = group.first_token + r / heads, h = h0 + r % heads;
    float* acc = call.out.row<float>(t) + h * call.out.stride[1];
    std::memset(acc, 0, static_cast<size_t>(dim) * sizeof(float));
    rows.push_back({call.q.row<const float>(t) + h * call.q.stride[1], acc, &maxima[r - row0],
                    &sums[r - row0], call.contexts[t].num_keys});
    keys = std::max(keys, call.contexts[t].num_keys);
  }
  const int32_t* table =
      call.batch.block_tables.row<int32_t>(call.contexts[group.first_token].sequence);
  float* values = scratch + kKeyBlock * dim;
  for (int64_t p = 0; p < keys; p += kKeyBlock) {
    const int64_t count = std::min(kKeyBlock, keys - p);
    stage_cache(table, call.batch.page_size, p, count, dim, scratch,
                [&](int64_t slot, float* to) HWY_ATTR {
                  decode_cache(call.k_cache, slot, group.head * dim, dim, to);
                });
    stage_cache(table, call.batch.page_size, p, count, dim, values,
                [&](int64_t slot, float* to) HWY_ATTR {
                  decode_cache(call.v_cache, slot, group.head * dim, dim, to);
                });
    attend(rows, {scratch, dim, values, dim, dim, dim, p, count}, call.scale);
  }
  for (const QueryRow& row : rows) divide_row(row.acc, *row.sum, dim, row.acc);
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {

HWY_EXPORT(gqa_tiles);

std::vector<TokenContext> token_contexts(const PagedBatch& batch, int64_t num_tokens) {
  const int64_t sequences = batch.context_len.num_elements();
  check_i32(batch.query_start, sequences + 1, "query_start");
  check_i32(batch.context_len, sequences, "context_len");
  SHOAL_CHECK(batch.page_size > 0 && batch.block_tables.rank == 2 &&
                  batch.block_tables.dtype == DType::kI32 && batch.block_tables.dim(0) == sequences,
              "page_size {}, block_tables {}", batch.page_size, batch.block_tables.shape_string());
  const int32_t* start = batch.query_start.as<int32_t>();
  SHOAL_CHECK(start[0] == 0 && start[sequences] == num_tokens, "query_start ends at {}, {} tokens",
              start[sequences], num_tokens);
  std::vector<TokenContext> contexts;
  contexts.reserve(num_tokens);
  for (int32_t s = 0; s < sequences; ++s) {
    const int64_t context = batch.context_len.as<int32_t>()[s];
    SHOAL_CHECK(start[s] <= start[s + 1] && context >= start[s + 1] - start[s] &&
                    context <= batch.block_tables.dim(1) * batch.page_size,
                "sequence {}: rows [{}, {}), context {}", s, start[s], start[s + 1], context);
    for (int64_t r = start[s]; r < start[s + 1]; ++r) {
      contexts.push_back({s, context - (start[s + 1] - r) + 1});
    }
  }
  return contexts;
}

void CpuOps::gqa_attention(const Tensor& q, const CacheTensor& k_cache, const CacheTensor& v_cache,
                           const PagedBatch& batch, const HeadMap& heads, float softmax_scale,
                           const Tensor& out) {
  check_f32(q, 3, "q");
  check_f32(out, 3, "out");
  const int64_t dim = q.dim(2);
  check_cache(k_cache, "k_cache");
  check_cache(v_cache, "v_cache");
  SHOAL_CHECK(k_cache.data.dtype == v_cache.data.dtype && k_cache.dim() == v_cache.dim() &&
                  k_cache.dim() % dim == 0 && out.shape == q.shape &&
                  (!k_cache.quantised() || (k_cache.groups() == k_cache.dim() / dim &&
                                            v_cache.groups() == k_cache.groups())),
              "q {}, k_cache {}, v_cache {}, out {}", q.shape_string(), k_cache.shape_string(),
              v_cache.shape_string(), out.shape_string());
  const int64_t kv_heads = k_cache.dim() / dim;
  SHOAL_CHECK(
      heads.group >= 1 && heads.first_q_head / heads.group >= heads.first_kv_head &&
          (heads.first_q_head + q.dim(1) - 1) / heads.group - heads.first_kv_head < kv_heads,
      "{} heads from {}, {} KV heads from {}, group {}", q.dim(1), heads.first_q_head, kv_heads,
      heads.first_kv_head, heads.group);
  const std::vector<TokenContext> contexts = token_contexts(batch, q.dim(0));
  const GqaCall call{q, k_cache, v_cache, batch, heads, softmax_scale, out, contexts};

  std::vector<WorkGroup> groups;
  for (int64_t t = 0; t < q.dim(0);) {
    int64_t end = t + 1;
    while (end < q.dim(0) && end < t + kQueryTokens &&
           contexts[end].sequence == contexts[t].sequence) {
      ++end;
    }
    for (int64_t kv = 0; kv < kv_heads; ++kv) {
      const int64_t num_heads = call.head_end(kv) - call.head_begin(kv);
      if (num_heads <= 0) continue;
      groups.push_back({t, end - t, kv, ((end - t) * num_heads + kRowsPerTile - 1) / kRowsPerTile,
                        std::max<int64_t>(contexts[end - 1].num_keys, 1)});
    }
    t = end;
  }
  const int64_t floats = 2 * kKeyBlock * dim;
  scratch(floats);
  share_work(groups, pool_, [&](const WorkGroup& group, int64_t t0, int64_t t1, int worker) {
    HWY_DYNAMIC_DISPATCH(gqa_tiles)(call, group, t0, t1, worker_scratch(worker));
  });
}

}  // namespace shoal
#endif  // HWY_ONCE
