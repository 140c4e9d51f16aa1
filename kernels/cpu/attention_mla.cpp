// Multi-head latent attention: mla_decode (absorbed) and mla_prefill (expanded).
#include <limits>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_mla.cpp"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/attention-inl.h"

#ifndef SHOAL_KERNELS_CPU_ATTENTION_MLA_ONCE_
#define SHOAL_KERNELS_CPU_ATTENTION_MLA_ONCE_
namespace shoal {

inline constexpr int64_t kHeadsPerTile = 4;
// Queries of one head that share a staged block of keys in mla_prefill.
inline constexpr int64_t kPrefillTokens = 32;

struct MlaDecodeCall {
  const Tensor& q;
  const CacheTensor& cache;
  const PagedBatch& batch;
  float scale;
  const Tensor& out;
  const std::vector<TokenContext>& contexts;
};

struct MlaPrefillCall {
  const Tensor& q;
  const Tensor& kv;
  const Tensor& k_pe;
  const Tensor& positions;
  int64_t first_position;
  float scale;
  const AttentionState& state;
};

}  // namespace shoal
#endif

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

// Heads of tiles [tile0, tile1) of one token; each latent row is decoded once for all of them.
// scratch: [kKeyBlock, kv_lora + qk_rope].
void mla_decode_tiles(const MlaDecodeCall& call, const WorkGroup& group, int64_t tile0,
                      int64_t tile1, float* scratch) {
  const int64_t t = group.first_token, d = call.q.dim(2), dv = call.out.dim(2);
  const int64_t h0 = tile0 * kHeadsPerTile;
  const int64_t h1 = std::min(tile1 * kHeadsPerTile, call.q.dim(1));
  const int64_t keys = call.contexts[t].num_keys;
  std::vector<float> maxima(h1 - h0, -std::numeric_limits<float>::infinity());
  std::vector<float> sums(h1 - h0, 0.0f);
  std::vector<QueryRow> rows;
  for (int64_t h = h0; h < h1; ++h) {
    float* acc = call.out.row<float>(t) + h * call.out.stride[1];
    std::memset(acc, 0, static_cast<size_t>(dv) * sizeof(float));
    rows.push_back({call.q.row<const float>(t) + h * call.q.stride[1], acc, &maxima[h - h0],
                    &sums[h - h0], keys});
  }
  const int32_t* table = call.batch.block_tables.row<int32_t>(call.contexts[t].sequence);
  for (int64_t p = 0; p < keys; p += kKeyBlock) {
    const int64_t count = std::min(kKeyBlock, keys - p);
    stage_cache(table, call.batch.page_size, p, count, d, scratch,
                [&](int64_t slot, float* to) HWY_ATTR { decode_cache_row(call.cache, slot, to); });
    attend(rows, {scratch, d, scratch, d, d, dv, p, count}, call.scale);
  }
  for (const QueryRow& row : rows) divide_row(row.acc, *row.sum, dv, row.acc);
}

// Tiles of queries of one head; scratch: [kKeyBlock, qk_nope + qk_rope].
void mla_prefill_tiles(const MlaPrefillCall& call, const WorkGroup& group, int64_t tile0,
                       int64_t tile1, float* scratch) {
  const int64_t h = group.head, d = call.q.dim(2), rope = call.k_pe.dim(1), nope = d - rope;
  const int64_t dv = call.kv.dim(2) - nope, chunk = call.kv.dim(0);
  const int64_t t0 = group.first_token + tile0 * kHeadsPerTile;
  const int64_t t1 = group.first_token + std::min(tile1 * kHeadsPerTile, group.num_tokens);
  const AttentionState& state = call.state;
  std::vector<QueryRow> rows;
  int64_t keys = 0;
  for (int64_t t = t0; t < t1; ++t) {
    const int64_t num_keys = int64_t{call.positions.as<int32_t>()[t]} + 1;
    rows.push_back({call.q.row<const float>(t) + h * call.q.stride[1],
                    state.acc.row<float>(t) + h * state.acc.stride[1],
                    state.row_max.row<float>(t) + h, state.row_sum.row<float>(t) + h, num_keys});
    keys = std::max(keys, num_keys);
  }
  const int64_t end = std::min(call.first_position + chunk, keys);
  for (int64_t p = call.first_position; p < end;) {
    const int64_t next = std::min(end, (p / kKeyBlock + 1) * kKeyBlock);
    const int64_t i0 = p - call.first_position;
    for (int64_t i = 0; i < next - p; ++i) {
      const float* kv = call.kv.row<const float>(i0 + i) + h * call.kv.stride[1];
      convert(kv, nope, scratch + i * d);
      convert(call.k_pe.row<const float>(i0 + i), rope, scratch + i * d + nope);
    }
    const float* values = call.kv.row<const float>(i0) + h * call.kv.stride[1] + nope;
    attend(rows, {scratch, d, values, call.kv.stride[0], d, dv, p, next - p}, call.scale);
    p = next;
  }
}

void finish_rows(const AttentionState& state, const Tensor& out, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t h = 0; h < out.dim(1); ++h) {
      divide_row(state.acc.row<float>(t) + h * state.acc.stride[1], state.row_sum.row<float>(t)[h],
                 out.dim(2), out.row<float>(t) + h * out.stride[1]);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {

HWY_EXPORT(mla_decode_tiles);
HWY_EXPORT(mla_prefill_tiles);
HWY_EXPORT(finish_rows);

void CpuOps::mla_decode(const Tensor& q, const CacheTensor& cache, const PagedBatch& batch,
                        float softmax_scale, const Tensor& out) {
  check_f32(q, 3, "q");
  check_f32(out, 3, "out");
  check_cache(cache, "cache");
  SHOAL_CHECK(cache.dim() == q.dim(2) && out.dim(0) == q.dim(0) && out.dim(1) == q.dim(1) &&
                  out.dim(2) <= q.dim(2) &&
                  (!cache.quantised() || (cache.groups() == 1 && cache.data.dim(1) == out.dim(2))),
              "q {}, cache {}, out {}", q.shape_string(), cache.shape_string(), out.shape_string());
  const std::vector<TokenContext> contexts = token_contexts(batch, q.dim(0));
  const MlaDecodeCall call{q, cache, batch, softmax_scale, out, contexts};
  std::vector<WorkGroup> groups;
  for (int64_t t = 0; t < q.dim(0); ++t) {
    groups.push_back({t, 1, 0, (q.dim(1) + kHeadsPerTile - 1) / kHeadsPerTile,
                      std::max<int64_t>(contexts[t].num_keys, 1)});
  }
  scratch(kKeyBlock * q.dim(2));
  share_work(groups, pool_, [&](const WorkGroup& group, int64_t t0, int64_t t1, int worker) {
    HWY_DYNAMIC_DISPATCH(mla_decode_tiles)(call, group, t0, t1, worker_scratch(worker));
  });
}

void CpuOps::mla_prefill(const Tensor& q, const Tensor& kv, const Tensor& k_pe,
                         const Tensor& positions, int64_t first_position, float softmax_scale,
                         const AttentionState& state) {
  check_f32(q, 3, "q");
  check_f32(kv, 3, "kv");
  check_f32(k_pe, 2, "k_pe");
  check_f32(state.acc, 3, "acc");
  check_f32(state.row_max, 2, "row_max");
  check_f32(state.row_sum, 2, "row_sum");
  check_i32(positions, q.dim(0), "positions");
  const int64_t nope = q.dim(2) - k_pe.dim(1);
  SHOAL_CHECK(nope >= 0 && kv.dim(1) == q.dim(1) && kv.dim(0) == k_pe.dim(0) && kv.dim(2) >= nope &&
                  state.acc.dim(0) == q.dim(0) && state.acc.dim(1) == q.dim(1) &&
                  state.acc.dim(2) == kv.dim(2) - nope && first_position >= 0,
              "q {}, kv {}, k_pe {}, acc {}", q.shape_string(), kv.shape_string(),
              k_pe.shape_string(), state.acc.shape_string());
  const MlaPrefillCall call{q, kv, k_pe, positions, first_position, softmax_scale, state};
  std::vector<WorkGroup> groups;
  for (int64_t h = 0; h < q.dim(1); ++h) {
    for (int64_t t = 0; t < q.dim(0); t += kPrefillTokens) {
      const int64_t tokens = std::min(kPrefillTokens, q.dim(0) - t);
      const int64_t last = int64_t{positions.as<int32_t>()[t + tokens - 1]} + 1 - first_position;
      groups.push_back({t, tokens, h, (tokens + kHeadsPerTile - 1) / kHeadsPerTile,
                        std::clamp<int64_t>(last, 1, kv.dim(0) + 1)});
    }
  }
  scratch(kKeyBlock * q.dim(2));
  share_work(groups, pool_, [&](const WorkGroup& group, int64_t t0, int64_t t1, int worker) {
    HWY_DYNAMIC_DISPATCH(mla_prefill_tiles)(call, group, t0, t1, worker_scratch(worker));
  });
}

void CpuOps::begin_state(const AttentionState& state) {
  check_f32(state.acc, 3, "acc");
  SHOAL_CHECK(state.acc.contiguous() && state.row_max.contiguous() && state.row_sum.contiguous(),
              "acc {}", state.acc.shape_string());
  std::fill_n(state.acc.as<float>(), state.acc.num_elements(), 0.0f);
  std::fill_n(state.row_max.as<float>(), state.row_max.num_elements(),
              -std::numeric_limits<float>::infinity());
  std::fill_n(state.row_sum.as<float>(), state.row_sum.num_elements(), 0.0f);
}

void CpuOps::finish_state(const AttentionState& state, const Tensor& out) {
  check_f32(state.acc, 3, "acc");
  check_f32(out, 3, "out");
  SHOAL_CHECK(out.shape == state.acc.shape, "acc {}, out {}", state.acc.shape_string(),
              out.shape_string());
  for_rows(out.dim(0), out.dim(1) * out.dim(2), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(finish_rows)(state, out, begin, end);
  });
}

}  // namespace shoal
#endif  // HWY_ONCE
