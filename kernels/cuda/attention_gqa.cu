// gqa_attention: grouped-query attention over paged K and V, prefill and decode alike.
//
// gqa_mma_kernel (bfloat16 queries, a cache of bfloat16 or codes, head_dim 64 and 128;
// attention_flash.cuh): a block takes a tile of (row, head) pairs of one sequence and KV head, so that
// the heads of a group share the keys that come in.
//   decode   16 pairs, the 4 warps share the keys. 4 FLOPs per pair and element of 2 bytes: with a
//   group
//            of 8 some 16 FLOPs per byte, bound by memory. 34 KiB in flight per block and three
//            blocks on an H100's SM (68 KiB each with head_dim 128): expected 85 % of the copy
//            bandwidth.
//   prefill  64 or 128 pairs, every warp all keys: bound by arithmetic and shared memory.
// The average number of pairs per sequence chooses; in a batch of both, decoded tokens run in large
// tiles, where the warps without rows only copy. Everything else runs in attention_fma.cuh's form.
// Long contexts are cut: split_kv.cu.
#include "kernels/cuda/attention_flash.cuh"
#include "kernels/cuda/attention_paged.cuh"
#include "kernels/cuda/cuda_ops.h"

namespace shoal {
namespace gpu {
namespace {

// Grid: (items, kv_heads).
template <int kDim, int kWarpsM, int kWarpsN, typename TCache>
__global__ void __launch_bounds__(kWarpsM* kWarpsN* kWarp) gqa_mma_kernel(PagedCall call) {
  using F = Flash<kDim, kDim, kWarpsM, kWarpsN, TCache>;
  SHOAL_DYN_SMEM(bf16, smem);
  if (static_cast<int32_t>(blockIdx.x) >= call.work.counts[0]) return;  // the whole block
  const auto kv = static_cast<int32_t>(blockIdx.y);
  const WorkItem item = call.work.items[blockIdx.x];
  const Tile tile = make_tile(call, item, kv);
  if (tile.pairs <= 0) return;

  const int lane = threadIdx.x % kWarp, t = lane % 4;
  const int rows[2] = {F::row0() + lane / 4, F::row0() + lane / 4 + 8};
  const bf16* queries[2];
  int num_keys[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    queries[i] = rows[i] < tile.pairs
                     ? static_cast<const bf16*>(call.q) + tile.token(rows[i]) * call.q_token +
                           tile.head(rows[i]) * call.q_head
                     : nullptr;
    num_keys[i] = tile.num_keys(rows[i]);
  }
  const auto load = [&](int position, int count, TCache* keys, TCache* values, float* key_scales,
                        float* value_scales) {
    constexpr int kPerChunk = 16 / sizeof(TCache);  // elements of 16 bytes, one chunk per thread
    constexpr int kChunks = kDim / kPerChunk;
    constexpr int kPitch = F::kCodes ? kDim : F::kKeyPitch;
    const int c = kPerChunk * (threadIdx.x % kChunks);
#pragma unroll
    for (int r = threadIdx.x / kChunks; r < F::kKeys; r += F::kThreads / kChunks) {
      const bool valid = r < count;  // past it: zeros, whatever the cache holds there
      const int64_t slot = valid ? call.pages.slot(item.sequence, position + r) : 0;
      const int64_t column = int64_t{kv} * kDim + c;
      cp_async_16(keys + r * kPitch + c,
                  static_cast<const TCache*>(call.k) + slot * call.k_slot + column, valid);
      cp_async_16(values + r * kPitch + c,
                  static_cast<const TCache*>(call.v) + slot * call.v_slot + column, valid);
      if constexpr (F::kCodes) {
        if (c == 0) {
          cp_async_4(key_scales + r, call.k_scale + slot * call.k_scale_slot + kv, valid);
          cp_async_4(value_scales + r, call.v_scale + slot * call.v_scale_slot + kv, valid);
        }
      }
    }
  };
  RowPair state;
  typename F::Acc acc = {};
  F::attend(smem, queries, num_keys, tile.key_begin, tile.key_end, call.scale, state, acc, load);

  if constexpr (kWarpsN > 1) {
    const auto merged = F::merge(smem, state, acc);
    for (int i = threadIdx.x; i < tile.pairs * kDim; i += F::kThreads) {
      const int pair = i / kDim, c = i % kDim;
      const float2 stats = merged.row(pair);
      const float sum = merged.sum(pair, c, stats.x);
      if (item.slot < 0) {
        out_row<bf16>(call, tile, pair)[c] = from_f32<bf16>(sum * softmax_inverse(stats.y));
      } else {
        const int64_t to = partial_row(call, item.slot, kv, pair);
        call.work.acc[to * kDim + c] = sum;
        if (c == 0) call.work.stats[to] = stats;
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (rows[i] >= tile.pairs) continue;
      if (item.slot < 0) {
        const float inverse = softmax_inverse(state.sum[i]);
        bf16* out = out_row<bf16>(call, tile, rows[i]) + 2 * t;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          store_pair(out + 8 * n, acc[n][2 * i] * inverse, acc[n][2 * i + 1] * inverse);
        }
      } else {
        const int64_t to = partial_row(call, item.slot, kv, rows[i]);
        float* out = call.work.acc + to * kDim + 2 * t;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          store_pair(out + 8 * n, acc[n][2 * i], acc[n][2 * i + 1]);
        }
        if (t == 0) call.work.stats[to] = make_float2(state.max[i], state.sum[i]);
      }
    }
  }
}

template <int kDim, int kWarpsM, int kWarpsN, typename TCache>
void run_mma(const PagedCall& call, const PagedBatch& batch, int64_t num_tokens,
             const CudaDevice& device, StepCuts& cuts, Workspace& scratch) {
  using F = Flash<kDim, kDim, kWarpsM, kWarpsN, TCache>;
  run_paged(call, batch, num_tokens, DType::kBF16, F::kRows, F::kKeys, F::kSmem, device, cuts, scratch,
            [&](dim3 grid, const PagedCall& c) {
              launch(gqa_mma_kernel<kDim, kWarpsM, kWarpsN, TCache>, grid, dim3(F::kThreads), F::kSmem,
                     device.stream(), c);
            });
}

template <int kDim, typename TCache>
void run_mma(const PagedCall& call, const PagedBatch& batch, int64_t num_tokens,
             const CudaDevice& device, StepCuts& cuts, Workspace& scratch) {
  const int64_t num_seqs = batch.context_len.num_elements();
  const int64_t pairs =
      std::min(call.group, call.num_heads) * ((num_tokens + num_seqs - 1) / num_seqs);
  if (pairs <= 16) {
    run_mma<kDim, 1, 4, TCache>(call, batch, num_tokens, device, cuts, scratch);
  } else if (pairs <= 64) {
    run_mma<kDim, 4, 1, TCache>(call, batch, num_tokens, device, cuts, scratch);
  } else {
    run_mma<kDim, 8, 1, TCache>(call, batch, num_tokens, device, cuts, scratch);
  }
}

}  // namespace
}  // namespace gpu

void CudaOps::gqa_attention(const Tensor& q, const CacheTensor& k_cache,
                            const CacheTensor& v_cache,
                            const PagedBatch& batch, const HeadMap& heads, float softmax_scale,
                            const Tensor& out) {
  check_activation(q, 3, "q");
  check_activation(out, 3, "out");
  const int64_t dim = q.dim(2);
  check_cache(k_cache, "k_cache");
  check_cache(v_cache, "v_cache");
  SHOAL_CHECK(k_cache.data.dtype == v_cache.data.dtype && k_cache.dim() == v_cache.dim() && dim > 0 &&
                  k_cache.dim() % dim == 0 && out.shape == q.shape && out.dtype == q.dtype &&
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
  gpu::check_batch(batch);
  if (q.num_elements() == 0 || batch.context_len.num_elements() == 0) return;

  gpu::PagedCall call{};
  call.q = q.data;
  call.k = k_cache.data.data;
  call.v = v_cache.data.data;
  call.out = out.data;
  call.q_token = q.stride[0];
  call.q_head = q.stride[1];
  call.k_slot = k_cache.data.stride[0];
  call.v_slot = v_cache.data.stride[0];
  call.out_token = out.stride[0];
  call.out_head = out.stride[1];
  if (k_cache.quantised()) {
    call.k_scale = k_cache.scale.as<const float>();
    call.v_scale = v_cache.scale.as<const float>();
    call.k_scale_slot = k_cache.scale.stride[0];
    call.v_scale_slot = v_cache.scale.stride[0];
  }
  call.num_heads = static_cast<int32_t>(q.dim(1));
  call.d = call.dv = static_cast<int32_t>(dim);
  call.group = heads.group;
  call.first_q_head = heads.first_q_head;
  call.first_kv_head = heads.first_kv_head;
  call.kv_heads = static_cast<int32_t>(kv_heads);
  call.scale = softmax_scale * gpu::kLog2e;
  call.pages = gpu::page_table(batch);

  const DType type = k_cache.data.dtype;
  const bool tensor_cores = q.dtype == DType::kBF16 && type != DType::kF32 &&
                            gpu::rows_aligned_16(q) && gpu::rows_aligned_16(k_cache) &&
                            gpu::rows_aligned_16(v_cache) && gpu::rows_aligned_16(out);
  if (!tensor_cores || (dim != 64 && dim != 128)) {
    gpu::run_paged_fma<false>(call, batch, q.dim(0), q.dtype, type, device_, step_cuts_, scratch_);
    return;
  }
  const auto run = [&](auto element) {
    using TCache = decltype(element);
    if (dim == 128) {
      gpu::run_mma<128, TCache>(call, batch, q.dim(0), device_, step_cuts_, scratch_);
    } else {
      gpu::run_mma<64, TCache>(call, batch, q.dim(0), device_, step_cuts_, scratch_);
    }
  };
  if (type == DType::kBF16) {
    run(gpu::bf16{});
  } else if (type == DType::kF8E4M3) {
    run(gpu::e4m3{});
  } else {
    run(int8_t{});
  }
}

}  // namespace shoal
