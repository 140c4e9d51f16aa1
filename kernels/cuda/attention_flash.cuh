// Flash attention on tensor cores for bfloat16 queries, keys and values of fixed dimensions: what
// gqa_attention and mla_prefill share.
//
// A block takes 16 * kWarpsM query rows and walks over the keys 64 at a time, brought in by
// cp.async one block of keys ahead. A warp has 16 rows and 64 / kWarpsN of the keys: their scores,
// weights and all output columns live in its registers (the D fragment of the scores is, packed,
// the A fragment of the output), so that warps meet only where the next keys arrive.
//   kWarpsN = 1  prefill: many rows. Per 16 rows and 64 keys (d_qk + d_v) / 4 mma against
//                128 * (d_qk + d_v) bytes read from shared memory: the two are about level on an
//                A100, shared memory is the limit on an H100 (there about 60 % of the mma.sync
//                rate).
//   kWarpsN = 4  decode: at most 16 rows, bound by memory; the warps' results are added up at the
//   end.
// A cache of one-byte codes (TCache) arrives as it is, two blocks of keys ahead, and is decoded to
// bfloat16 in shared memory: half the bytes for some 3 instructions an element and one barrier more.
// Codes are exact in bfloat16; a key's scales multiply its score and its weight.
#pragma once

#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/cache_codes.cuh"

namespace shoal::gpu {

template <int kDqk, int kDv, int kWarpsM, int kWarpsN, typename TCache = bf16>
struct Flash {
  static constexpr bool kCodes = kIsCode<TCache>;
  static constexpr int kRows = 16 * kWarpsM;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  static constexpr int kKeys = 64;
  static constexpr int kWarpKeys = kKeys / kWarpsN;
  static constexpr int kStages = 2;
  // 16 bytes more than whole rows of banks: the rows that ldmatrix reads begin 4 banks apart.
  static constexpr int kKeyPitch = kDqk + 8, kValuePitch = kDv + 8;
  static constexpr int kStage = kKeys * (kKeyPitch + kValuePitch);
  // Of codes a stage is raw, [kKeys, kDqk], [kKeys, kDv] and two scales a key, and there is one
  // decoded block with its scales.
  static constexpr int kCodeStage = kKeys * (kDqk + kDv + 2 * static_cast<int>(sizeof(float)));
  static constexpr size_t kSmem =
      kCodes ? sizeof(bf16) * kStage + kStages * kCodeStage + sizeof(float) * 2 * kKeys
             : sizeof(bf16) * kStages * kStage;
  static constexpr int kAhead = kCodes ? kStages : kStages - 1;  // blocks under way
  static_assert(kSmem <= kPortableSmem && kDqk % 64 == 0 && kDv % 64 == 0);
  static_assert(kWarpsN == 1 || (kWarpsM == 1 && kWarpKeys % 16 == 0));

  using Acc = float[kDv / 8][4];

  // The warp's first row of the tile.
  static __device__ __forceinline__ int row0() { return threadIdx.x / kWarp / kWarpsN * 16; }

  // The raw stage of a block, behind the decoded one.
  static __device__ __forceinline__ TCache* code_stage(bf16* smem, int block) {
    return reinterpret_cast<TCache*>(smem + kStage) + block % kStages * kCodeStage;
  }
  static __device__ __forceinline__ float* decoded_scales(bf16* smem) {
    return reinterpret_cast<float*>(code_stage(smem, 0) + kStages * kCodeStage);
  }

  // From the block's stage to the decoded one, with all threads.
  static __device__ __forceinline__ void decode_block(bf16* smem, int block) {
    const TCache* const keys = code_stage(smem, block);
    const TCache* const values = keys + kKeys * kDqk;
    const float* const scales = reinterpret_cast<const float*>(values + kKeys * kDv);
    constexpr int kKeyChunks = kDqk / 16, kChunks = (kDqk + kDv) / 16;
    for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      if (chunk < kKeyChunks) {
        decode_16<TCache>(keys + row * kDqk + 16 * chunk, smem + row * kKeyPitch + 16 * chunk);
      } else {
        const int c = 16 * (chunk - kKeyChunks);
        decode_16<TCache>(values + row * kDv + c,
                          smem + kKeys * kKeyPitch + row * kValuePitch + c);
      }
    }
    for (int i = threadIdx.x; i < 2 * kKeys; i += kThreads) decoded_scales(smem)[i] = scales[i];
  }

  // Folds keys [begin, end) into this thread's rows row0() + lane / 4 and 8 further: state and acc,
  // which hold what was folded before. Queries by address (nullptr: none). Row i sees positions
  // below num_keys[i]. load(first, count, keys, values, key_scales, value_scales) starts the copies
  // (cp_async) of kKeys rows to shared memory, zeros past `count`; all threads call it. Rows are
  // kKeyPitch and kValuePitch apart; codes lie without gaps, and only they have scales.
  template <typename Load>
  static __device__ __forceinline__ void attend(bf16* smem, const bf16* const (&queries)[2],
                                                const int (&num_keys)[2], int begin, int end,
                                                float scale, RowPair& state, Acc& acc,
                                                const Load& load) {
    const int lane = threadIdx.x % kWarp, t = lane % 4;
    const int first_key = threadIdx.x / kWarp % kWarpsN * kWarpKeys;  // of a block, this warp's
    const int num_blocks = (end - begin + kKeys - 1) / kKeys;
    const auto issue = [&](int block) {
      if (block < num_blocks) {
        const int position = begin + block * kKeys, count = min(kKeys, end - position);
        if constexpr (kCodes) {
          TCache* const keys = code_stage(smem, block);
          TCache* const values = keys + kKeys * kDqk;
          float* const scales = reinterpret_cast<float*>(values + kKeys * kDv);
          load(position, count, keys, values, scales, scales + kKeys);
        } else {
          bf16* const keys = smem + block % kStages * kStage;
          load(position, count, keys, keys + kKeys * kKeyPitch, nullptr, nullptr);
        }
      }
      cp_async_commit();
    };
#pragma unroll
    for (int block = 0; block < kAhead; ++block) issue(block);

    uint32_t q[kDqk / 16][4];
#pragma unroll
    for (int k = 0; k < kDqk / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // row i % 2, elements 2t.. of half i / 2
        const bf16* row = queries[i % 2];
        q[k][i] = row == nullptr
                      ? 0
                      : *reinterpret_cast<const uint32_t*>(row + 16 * k + i / 2 * 8 + 2 * t);
      }
    }
    const int limit[2] = {min(num_keys[0], end), min(num_keys[1], end)};
    const int most = warp_max(max(limit[0], limit[1])), least = -warp_max(-min(limit[0], limit[1]));

    for (int block = 0; block < num_blocks; ++block) {
      cp_async_wait<kAhead - 1>();
      __syncthreads();  // all copies of this block are here, and all warps are done with the last
                        // one
      if constexpr (kCodes) {
        decode_block(smem, block);
        __syncthreads();
      }
      issue(block + kAhead);
      const int position = begin + block * kKeys + first_key;
      if (position >= most) continue;  // the warp's rows see none of its keys
      const bf16* const stage = kCodes ? smem : smem + block % kStages * kStage;
      const bf16* const keys = stage + first_key * kKeyPitch;
      const bf16* const values = stage + kKeys * kKeyPitch + first_key * kValuePitch;
      // Of codes: this lane's keys are 2t and 2t + 1 of each eight.
      const float* const key_scales = decoded_scales(smem) + first_key + 2 * t;
      const float* const value_scales = key_scales + kKeys;

      float score[kWarpKeys / 8][4] = {};
#pragma unroll
      for (int k = 0; k < kDqk / 16; ++k) {
#pragma unroll
        for (int n = 0; n < kWarpKeys / 8; n += 2) {
          uint32_t b[4];
          load_keys_16x16(b, keys + n * 8 * kKeyPitch + k * 16, kKeyPitch);
          mma_halves(score[n], score[n + 1], q[k], b);
        }
      }
      const bool all_seen = position + kWarpKeys <= least;
      float block_max[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int n = 0; n < kWarpKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool seen = all_seen || position + 8 * n + 2 * t + i % 2 < limit[i / 2];
          if constexpr (kCodes) score[n][i] *= key_scales[8 * n + i % 2];
          score[n][i] = seen ? score[n][i] * scale : -INFINITY;
          block_max[i / 2] = fmaxf(block_max[i / 2], score[n][i]);
        }
      }
      float shift[2], factor[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float new_max = fmaxf(state.max[i], quad_max(block_max[i]));
        shift[i] = softmax_shift(new_max);
        factor[i] = softmax_rescale(state.max[i], new_max);
        state.max[i] = new_max;
        state.sum[i] *= factor[i];
      }
#pragma unroll
      for (int n = 0; n < kWarpKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          score[n][i] = exp2f(score[n][i] - shift[i / 2]);
          state.sum[i / 2] += score[n][i];
          if constexpr (kCodes) score[n][i] *= value_scales[8 * n + i % 2];
        }
      }
#pragma unroll
      for (int n = 0; n < kDv / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[n][i] *= factor[i / 2];
      }
#pragma unroll
      for (int k = 0; k < kWarpKeys / 16; ++k) {
        const float(&low)[4] = score[2 * k], (&high)[4] = score[2 * k + 1];
        const uint32_t a[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]),
                               pack_bf16(high[0], high[1]), pack_bf16(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < kDv / 8; n += 2) {
          uint32_t b[4];
          load_values_16x16(b, values + k * 16 * kValuePitch + n * 8, kValuePitch);
          mma_halves(acc[n], acc[n + 1], a, b);
        }
      }
    }
    cp_async_wait<0>();
    state.sum[0] = quad_sum(state.sum[0]);
    state.sum[1] = quad_sum(state.sum[1]);
  }

  // kWarpsN > 1: adds up the warps' states in shared memory, warp by warp. Afterwards merged(row,
  // column) gives sums and stats(row) maximum and sum of a row of the tile.
  struct Merged {
    const float* acc;     // [kWarpsN, 16, kDv]
    const float2* stats;  // [kWarpsN, 16]

    __device__ __forceinline__ float2 row(int r) const {
      float2 result = make_float2(-INFINITY, 0);
#pragma unroll
      for (int w = 0; w < kWarpsN; ++w) result.x = fmaxf(result.x, stats[w * 16 + r].x);
      const float shift = softmax_shift(result.x);
#pragma unroll
      for (int w = 0; w < kWarpsN; ++w) {
        result.y += stats[w * 16 + r].y * exp2f(stats[w * 16 + r].x - shift);
      }
      return result;
    }
    __device__ __forceinline__ float sum(int r, int c, float max) const {
      const float shift = softmax_shift(max);
      float result = 0;
#pragma unroll
      for (int w = 0; w < kWarpsN; ++w) {
        result += acc[(w * 16 + r) * kDv + c] * exp2f(stats[w * 16 + r].x - shift);
      }
      return result;
    }
  };
  static_assert(kWarpsN == 1 || sizeof(float) * kWarpsN * 16 * (kDv + 2) <= kSmem);

  static __device__ __forceinline__ Merged merge(bf16* smem, const RowPair& state, const Acc& acc) {
    float* const sums = reinterpret_cast<float*>(smem);
    float2* const stats = reinterpret_cast<float2*>(sums + kWarpsN * 16 * kDv);
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    const int w = threadIdx.x / kWarp;
    __syncthreads();  // all warps are done with the keys
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = w * 16 + g + 8 * i;
#pragma unroll
      for (int n = 0; n < kDv / 8; ++n) {
        store_pair(sums + row * kDv + 8 * n + 2 * t, acc[n][2 * i], acc[n][2 * i + 1]);
      }
      if (t == 0) stats[row] = make_float2(state.max[i], state.sum[i]);
    }
    __syncthreads();
    return {sums, stats};
  }
};

}  // namespace shoal::gpu
