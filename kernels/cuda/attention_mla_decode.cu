// mla_decode: MLA in the absorbed form over the paged latent cache.
//
// A cache row (kv_lora + qk_rope, 1,152 bytes in V2 and V3) is key and value of all heads. Per row
// and (row, head) pair 2 * (576 + 512) FLOPs: with 16 pairs 30 FLOPs per byte, with 64 pairs 120.
// Bound by memory below about 150 (A100) and 180 (H100), so what counts is that each row comes in
// once, in many bytes at a time; expected: 80 to 90 % of the copy bandwidth for contexts that fill
// the GPU.
//
// mla_decode_mma_kernel (bfloat16 queries, 512 + 64): a block takes a tile of 16, 32 or 64 pairs, 4 warps
// for each 16, and walks over the keys 32 at a time, brought in by cp.async one or two blocks of
// keys ahead.
//   scores   the 4 warps of 16 pairs take 8 keys each over all 576 elements (36 mma in two chains)
//   softmax  the row's maximum is exchanged through shared memory; P goes there as bfloat16
//   output   each warp has 128 of the 512 columns (64 accumulators a thread) and multiplies P by
//   the same
//            rows in shared memory, read transposed
// Shared memory: 1,168 bytes per pair and per key and stage: 93 KiB with 16 pairs and 2 stages (two
// blocks on an H100's SM), 130 KiB with 3 stages (sm_80), 114 and 155 KiB with 32 and 64 pairs.
// A quantised cache (644 bytes a row) arrives as it is, two blocks of keys ahead, and is decoded in shared
// memory to the one tile that the products read: half the bytes for some 3 instructions an element and one
// barrier more. Codes are exact in bfloat16; a row's scale multiplies its score, before the rotary part is
// added, and its weight. 97 KiB with 16 pairs, 117 and 157 KiB with 32 and 64.
// Everything else runs in attention_fma.cuh's form. Long contexts are cut: split_kv.cu.
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/attention_paged.cuh"
#include "kernels/cuda/cache_codes.cuh"
#include "kernels/cuda/cuda_ops.h"

namespace shoal {
namespace gpu {
namespace {

constexpr int kLora = 512, kRope = 64, kRow = kLora + kRope;
constexpr int kPitch = kRow + 8;  // 292 words: row r begins at bank 4r
constexpr int kKeys = 32;
constexpr int kWeightPitch = kKeys + 8;  // 20 words: 8 rows at banks 0, 20, 8, 28, 16, 4, 24, 12
constexpr int kWarpsPerTile = 4;  // 8 keys of the scores each, 128 columns of the output each
constexpr int kColumns = kLora / kWarpsPerTile;

// A block of keys as codes: [kKeys, kLora] bytes, [kKeys, kRope] bfloat16, [kKeys] scales.
constexpr int kCodeStage = kKeys * (kLora + 2 * kRope + 4);

// tiles: of 16 pairs.
constexpr size_t mma_smem(int tiles, int stages, bool codes) {
  return sizeof(bf16) * (size_t{kPitch} * (16 * tiles + kKeys * (codes ? 1 : stages)) +
                         size_t{kWeightPitch} * 16 * tiles) +
         sizeof(float) * kWarpsPerTile * 16 * tiles +
         (codes ? size_t{kCodeStage} * stages + sizeof(float) * kKeys : 0);
}
static_assert(mma_smem(1, 2, false) <= kPortableSmem && mma_smem(1, 2, true) <= kPortableSmem);

template <int kTiles, int kStages, typename TCache>
__global__ void __launch_bounds__(kTiles* kWarpsPerTile* kWarp)
    mla_decode_mma_kernel(PagedCall call) {
  constexpr bool kCodes = kIsCode<TCache>;
  constexpr int kRows = 16 * kTiles;
  constexpr int kThreads = kTiles * kWarpsPerTile * kWarp;
  constexpr int kAhead = kCodes ? kStages : kStages - 1;  // blocks of keys under way
  SHOAL_DYN_SMEM(bf16, smem);
  if (static_cast<int32_t>(blockIdx.x) >= call.work.counts[0]) return;  // the whole block
  const WorkItem item = call.work.items[blockIdx.x];
  const Tile tile = make_tile(call, item, 0);

  bf16* const q = smem;                                     // [kRows, kRow] by kPitch
  bf16* const latent = q + kRows * kPitch;                  // [stages, kKeys, kRow] by kPitch
  bf16* const weights =                                     // [kRows, kKeys] by kWeightPitch
      latent + (kCodes ? 1 : kStages) * kKeys * kPitch;
  // [kWarpsPerTile, kRows]: of the keys of each warp, maxima in the loop and sums at the end.
  float* const exchange = reinterpret_cast<float*>(weights + kRows * kWeightPitch);
  float* const scales = exchange + kWarpsPerTile * kRows;  // [kKeys], of codes, as the rest from here
  const auto code_stage = [&](int block) {
    return reinterpret_cast<std::byte*>(scales + kKeys) + block % kStages * kCodeStage;
  };

  // Copies: neighbouring threads take neighbouring 16 bytes of a row, and a thread its rows' slots
  // once.
  constexpr int kThreadsPerRow = kThreads / kKeys > 8 ? kThreads / kKeys : 8;
  constexpr int kRowsAtOnce = kThreads / kThreadsPerRow;
  const int copy_row = threadIdx.x / kThreadsPerRow, copy_chunk = threadIdx.x % kThreadsPerRow;
  const auto copy = [&](bf16* to, const bf16* from, bool valid) {
    constexpr int kChunks = kRow / 8;  // of 16 bytes
#pragma unroll
    for (int i = 0; i < (kChunks + kThreadsPerRow - 1) / kThreadsPerRow; ++i) {
      const int c = copy_chunk + i * kThreadsPerRow;
      if (kChunks % kThreadsPerRow == 0 || c < kChunks)
        cp_async_16(to + 8 * c, from + 8 * c, valid);
    }
  };
  const int num_blocks = (tile.key_end - tile.key_begin + kKeys - 1) / kKeys;
  const auto issue = [&](int block) {
    if (block < num_blocks) {
#pragma unroll
      for (int r = copy_row; r < kKeys; r += kRowsAtOnce) {
        const int position = tile.key_begin + block * kKeys + r;
        const bool valid =
            position < tile.key_end;  // past it: zeros, whatever the cache holds there
        const int64_t slot = valid ? call.pages.slot(item.sequence, position) : 0;
        if constexpr (kCodes) {
          std::byte* const codes = code_stage(block);
          bf16* const rope = reinterpret_cast<bf16*>(codes + kKeys * kLora);
          const auto* from = static_cast<const std::byte*>(call.k) + slot * call.k_slot;
          for (int c = 16 * copy_chunk; c < kLora; c += 16 * kThreadsPerRow) {
            cp_async_16(codes + r * kLora + c, from + c, valid);
          }
          for (int c = 8 * copy_chunk; c < kRope; c += 8 * kThreadsPerRow) {
            cp_async_16(rope + r * kRope + c, call.k_rope + slot * call.k_rope_slot + c, valid);
          }
          if (copy_chunk == 0) {
            cp_async_4(reinterpret_cast<float*>(rope + kKeys * kRope) + r,
                       call.k_scale + slot * call.k_scale_slot, valid);
          }
        } else {
          copy(latent + (block % kStages * kKeys + r) * kPitch,
               static_cast<const bf16*>(call.k) + slot * call.k_slot, valid);
        }
      }
    }
    cp_async_commit();
  };
  const auto decode_block = [&](int block) {
    if constexpr (kCodes) {
      const std::byte* const codes = code_stage(block);
      const bf16* const rope = reinterpret_cast<const bf16*>(codes + kKeys * kLora);
      constexpr int kCodeChunks = kLora / 16, kChunks = kCodeChunks + kRope / 8;
      for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
        const int row = i / kChunks, chunk = i % kChunks;
        if (chunk < kCodeChunks) {
          decode_16<TCache>(codes + row * kLora + 16 * chunk, latent + row * kPitch + 16 * chunk);
        } else {
          const int c = 8 * (chunk - kCodeChunks);
          store_16(latent + row * kPitch + kLora + c, load_16(rope + row * kRope + c));
        }
      }
      if (threadIdx.x < kKeys) {
        scales[threadIdx.x] = reinterpret_cast<const float*>(rope + kKeys * kRope)[threadIdx.x];
      }
    }
  };
  for (int r = copy_row; r < kRows; r += kRowsAtOnce) {
    const bool valid = r < tile.pairs;
    const int pair = valid ? r : 0;
    copy(q + r * kPitch,
         static_cast<const bf16*>(call.q) + tile.token(pair) * call.q_token +
             tile.head(pair) * call.q_head,
         valid);
  }
  for (int block = 0; block < kAhead; ++block) issue(block);

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int part = warp % kWarpsPerTile;       // which keys, and which columns
  const int row0 = warp / kWarpsPerTile * 16;  // of the warp's 16 pairs
  const int g = lane / 4, t = lane % 4;
  const int rows[2] = {row0 + g, row0 + g + 8};
  const int num_keys[2] = {tile.num_keys(rows[0]), tile.num_keys(rows[1])};
  RowPair state;
  float acc[kColumns / 8][4] = {};

  for (int block = 0; block < num_blocks; ++block) {
    cp_async_wait<kAhead - 1>();
    __syncthreads();  // all copies of this block are here, and all warps are done with the last one
    if constexpr (kCodes) {
      decode_block(block);
      __syncthreads();
    }
    issue(block + kAhead);
    const bf16* const stage = latent + (kCodes ? 0 : block % kStages * kKeys * kPitch);
    // Of this lane's keys, 2t and 2t + 1 of the warp's eight.
    float key_scale[2] = {1, 1};
    if constexpr (kCodes) {
      key_scale[0] = scales[part * 8 + 2 * t];
      key_scale[1] = scales[part * 8 + 2 * t + 1];
    }

    float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
    const auto multiply = [&](int k) {
      uint32_t a0[4], a1[4], b[4];
      load_a(a0, q + row0 * kPitch + k, kPitch);
      load_a(a1, q + row0 * kPitch + k + 16, kPitch);
      load_keys_8x32(b, stage + part * 8 * kPitch + k, kPitch);
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
      mma_m16n8k16_bf16(even, a0, b0);
      mma_m16n8k16_bf16(odd, a1, b1);
    };
#pragma unroll 8
    for (int k = 0; k < kLora; k += 32) multiply(k);
    if constexpr (kCodes) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        even[i] *= key_scale[i % 2];
        odd[i] *= key_scale[i % 2];
      }
    }
#pragma unroll
    for (int k = kLora; k < kRow; k += 32) multiply(k);
    float score[2][2];  // [row, key 2t and 2t + 1 of the warp's]
    const int position = tile.key_begin + block * kKeys + part * 8 + 2 * t;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        score[i][j] = position + j < min(num_keys[i], tile.key_end)
                          ? call.scale * (even[2 * i + j] + odd[2 * i + j])
                          : -INFINITY;
      }
      const float most = quad_max(fmaxf(score[i][0], score[i][1]));
      if (t == 0) exchange[part * kRows + rows[i]] = most;
    }
    __syncthreads();
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = state.max[i];
#pragma unroll
      for (int w = 0; w < kWarpsPerTile; ++w) most = fmaxf(most, exchange[w * kRows + rows[i]]);
      const float shift = softmax_shift(most);
      const float p0 = exp2f(score[i][0] - shift), p1 = exp2f(score[i][1] - shift);
      factor[i] = softmax_rescale(state.max[i], most);
      state.max[i] = most;
      state.sum[i] = state.sum[i] * factor[i] + (p0 + p1);
      store_pair(weights + rows[i] * kWeightPitch + part * 8 + 2 * t, p0 * key_scale[0],
                 p1 * key_scale[1]);
    }
    if (factor[0] != 1 || factor[1] != 1) {
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[n][i] *= factor[i / 2];
      }
    }
    __syncthreads();

#pragma unroll
    for (int k = 0; k < kKeys; k += 16) {
      uint32_t a[4];
      load_a(a, weights + row0 * kWeightPitch + k, kWeightPitch);
#pragma unroll
      for (int n = 0; n < kColumns / 8; n += 2) {
        uint32_t b[4];
        load_values_16x16(b, stage + k * kPitch + part * kColumns + n * 8, kPitch);
        mma_halves(acc[n], acc[n + 1], a, b);
      }
    }
  }
  cp_async_wait<0>();  // of a tile without keys: its queries are still on their way

  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = quad_sum(state.sum[i]);
    if (t == 0) exchange[part * kRows + rows[i]] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (rows[i] >= tile.pairs) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarpsPerTile; ++w) sum += exchange[w * kRows + rows[i]];
    if (item.slot < 0) {
      const float inverse = softmax_inverse(sum);
      bf16* out = out_row<bf16>(call, tile, rows[i]) + part * kColumns + 2 * t;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        store_pair(out + 8 * n, acc[n][2 * i] * inverse, acc[n][2 * i + 1] * inverse);
      }
    } else {
      const int64_t to = partial_row(call, item.slot, 0, rows[i]);
      float* out = call.work.acc + to * kLora + part * kColumns + 2 * t;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        store_pair(out + 8 * n, acc[n][2 * i], acc[n][2 * i + 1]);
      }
      if (part == 0 && t == 0) call.work.stats[to] = make_float2(state.max[i], sum);
    }
  }
}

template <int kTiles, int kStages, typename TCache>
void run_mma(const PagedCall& call, const PagedBatch& batch, int64_t num_tokens,
             const CudaDevice& device, StepCuts& cuts, Workspace& scratch) {
  constexpr size_t kSmem = mma_smem(kTiles, kStages, kIsCode<TCache>);
  run_paged(call, batch, num_tokens, DType::kBF16, 16 * kTiles, kKeys, kSmem, device, cuts, scratch,
            [&](dim3 grid, const PagedCall& c) {
              launch(mla_decode_mma_kernel<kTiles, kStages, TCache>, grid,
                     dim3(kTiles * kWarpsPerTile * kWarp), kSmem, device.stream(), c);
            });
}

template <typename TCache>
void run_mma(const PagedCall& call, const PagedBatch& batch, int64_t num_tokens,
             const CudaDevice& device, StepCuts& cuts, Workspace& scratch) {
  constexpr bool kCodes = kIsCode<TCache>;
  // Pairs that a sequence has, on average: as many of them as fit share the rows that come in.
  const int64_t num_seqs = batch.context_len.num_elements();
  const int64_t pairs = call.num_heads * ((num_tokens + num_seqs - 1) / num_seqs);
  const size_t most = device.max_smem();
  if (pairs > 32 && mma_smem(4, 2, kCodes) <= most) {
    run_mma<4, 2, TCache>(call, batch, num_tokens, device, cuts, scratch);
  } else if (pairs > 16 && mma_smem(2, 2, kCodes) <= most) {
    run_mma<2, 2, TCache>(call, batch, num_tokens, device, cuts, scratch);
  } else if (2 * mma_smem(1, 2, kCodes) > most && mma_smem(1, 3, kCodes) <= most) {
    run_mma<1, 3, TCache>(call, batch, num_tokens, device, cuts, scratch);  // one block per SM: deeper
  } else {
    run_mma<1, 2, TCache>(call, batch, num_tokens, device, cuts, scratch);
  }
}

}  // namespace
}  // namespace gpu

void CudaOps::mla_decode(const Tensor& q, const CacheTensor& cache, const PagedBatch& batch,
                         float softmax_scale, const Tensor& out) {
  check_activation(q, 3, "q");
  check_activation(out, 3, "out");
  check_cache(cache, "cache");
  SHOAL_CHECK(cache.dim() == q.dim(2) && out.dtype == q.dtype && out.dim(0) == q.dim(0) &&
                  out.dim(1) == q.dim(1) && out.dim(2) <= q.dim(2) &&
                  (!cache.quantised() || (cache.groups() == 1 && cache.data.dim(1) == out.dim(2))),
              "q {}, cache {}, out {}", q.shape_string(), cache.shape_string(), out.shape_string());
  gpu::check_batch(batch);
  const int64_t num_tokens = q.dim(0), num_seqs = batch.context_len.num_elements();
  if (out.num_elements() == 0 || num_seqs == 0) return;

  gpu::PagedCall call{};
  call.q = q.data;
  call.k = call.v = cache.data.data;
  call.out = out.data;
  call.q_token = q.stride[0];
  call.q_head = q.stride[1];
  call.k_slot = call.v_slot = cache.data.stride[0];
  call.out_token = out.stride[0];
  call.out_head = out.stride[1];
  if (cache.quantised()) {
    call.k_scale = cache.scale.as<const float>();
    call.k_scale_slot = cache.scale.stride[0];
    call.k_rope = cache.rope.as<const gpu::bf16>();
    call.k_rope_slot = cache.rope.stride[0];
  }
  call.num_heads = call.group = static_cast<int32_t>(q.dim(1));
  call.d = static_cast<int32_t>(q.dim(2));
  call.dv = static_cast<int32_t>(out.dim(2));
  call.kv_heads = 1;
  call.scale = softmax_scale * gpu::kLog2e;
  call.pages = gpu::page_table(batch);

  const DType type = cache.data.dtype;
  const bool tensor_cores = q.dtype == DType::kBF16 && type != DType::kF32 &&
                            call.d == gpu::kRow && call.dv == gpu::kLora &&
                            gpu::rows_aligned_16(q) && gpu::rows_aligned_16(cache) &&
                            gpu::rows_aligned_16(out);
  if (!tensor_cores) {
    gpu::run_paged_fma<true>(call, batch, num_tokens, q.dtype, type, device_, step_cuts_, scratch_);
  } else if (type == DType::kBF16) {
    gpu::run_mma<gpu::bf16>(call, batch, num_tokens, device_, step_cuts_, scratch_);
  } else if (type == DType::kF8E4M3) {
    gpu::run_mma<gpu::e4m3>(call, batch, num_tokens, device_, step_cuts_, scratch_);
  } else {
    gpu::run_mma<int8_t>(call, batch, num_tokens, device_, step_cuts_, scratch_);
  }
}

}  // namespace shoal
