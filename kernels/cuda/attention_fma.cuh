// Attention in plain float arithmetic: any storage types and any dimensions. The form for float32,
// whose precision tensor cores do not have, and for shapes that the tensor-core forms were not made
// for.
//
// A block of 4 warps takes a tile of 8 query rows and walks over the keys 16 at a time, staged as
// floats in shared memory. Scores: a warp has two rows, a half-warp one row and a lane one key of
// it; four partial sums each. Values: a thread has columns and keeps all 8 rows of a column in
// registers, so that a value is read once from shared memory for 8 products. Bound by shared
// memory: about one load per two FMAs for the scores and one per eight for the values.
#pragma once

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/cache_codes.cuh"

namespace shoal::gpu {

constexpr int kFmaRows = 8;
constexpr int kFmaKeys = 16;
constexpr int kFmaThreads = 128;

// Shared memory of a block. MLA's decode form has no values of its own: they are the keys' first
// dv.
struct FmaTile {
  int d, dv;
  int key_pitch, value_pitch;
  float* q;       // [kFmaRows, d]
  float* keys;    // [kFmaKeys, d] by key_pitch, which is odd: lanes at different keys hit all banks
  float* values;  // [kFmaKeys, dv] by value_pitch
  float* acc;     // [kFmaRows, dv]
  float* weights;  // [kFmaKeys, kFmaRows]
  float* factor;   // [kFmaRows]
  float* row_max;  // [kFmaRows]
  float* row_sum;  // [kFmaRows]
  int* num_keys;   // [kFmaRows]: positions that the row sees

  __host__ __device__ static size_t bytes(int d, int dv, bool shared_values) {
    return sizeof(float) *
           (size_t{kFmaRows} * (d + dv) + size_t{kFmaKeys} * (d | 1) +
            (shared_values ? 0 : size_t{kFmaKeys} * dv) + size_t{kFmaRows} * (kFmaKeys + 4));
  }
  __device__ FmaTile(float* smem, int d_, int dv_, bool shared_values)
      : d(d_), dv(dv_), key_pitch(d_ | 1), value_pitch(shared_values ? d_ | 1 : dv_) {
    q = smem;
    acc = q + kFmaRows * d;
    weights = acc + kFmaRows * dv;
    factor = weights + kFmaKeys * kFmaRows;
    row_max = factor + kFmaRows;
    row_sum = row_max + kFmaRows;
    num_keys = reinterpret_cast<int*>(row_sum + kFmaRows);
    keys = row_sum + 2 * kFmaRows;
    values = shared_values ? keys : keys + kFmaKeys * key_pitch;
  }
};

// Folds the keys of positions [begin, end) into the tile's rows: row_max, row_sum and acc, which
// hold the state so far. stage(position, count) fills keys and values with all threads. Everything
// in the tile but keys and values is written before; the block is in step when this returns.
template <typename Stage>
__device__ void fma_attend(const FmaTile& tile, int begin, int end, float scale,
                           const Stage& stage) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int row = 2 * warp + lane / kFmaKeys, key = lane % kFmaKeys;
  __syncthreads();
  const int num_keys = tile.num_keys[row];
  float row_max = tile.row_max[row], row_sum = tile.row_sum[row];
  for (int position = begin; position < end; position += kFmaKeys) {
    const int count = min(kFmaKeys, end - position);
    stage(position, count);
    __syncthreads();

    float score = -INFINITY;
    if (key < count && position + key < num_keys) {
      const float* q = tile.q + row * tile.d;
      const float* k = tile.keys + key * tile.key_pitch;
      float sum[4] = {0, 0, 0, 0};
      int i = 0;
      for (; i + 4 <= tile.d; i += 4) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += q[i + j] * k[i + j];
      }
      for (; i < tile.d; ++i) sum[0] += q[i] * k[i];
      score = scale * ((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
    float new_max = score;
#pragma unroll
    for (int offset = kFmaKeys / 2; offset > 0; offset /= 2) {
      new_max = fmaxf(new_max, __shfl_xor_sync(kFullMask, new_max, offset));
    }
    new_max = fmaxf(new_max, row_max);
    const float weight = exp2f(score - softmax_shift(new_max));
    float sum = weight;
#pragma unroll
    for (int offset = kFmaKeys / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(kFullMask, sum, offset);
    }
    const float factor = softmax_rescale(row_max, new_max);
    row_max = new_max;
    row_sum = row_sum * factor + sum;
    tile.weights[key * kFmaRows + row] = weight;
    if (key == 0) tile.factor[row] = factor;
    __syncthreads();

    for (int c = threadIdx.x; c < tile.dv; c += kFmaThreads) {
      float acc[kFmaRows];
#pragma unroll
      for (int r = 0; r < kFmaRows; ++r) acc[r] = tile.acc[r * tile.dv + c] * tile.factor[r];
      for (int k = 0; k < count; ++k) {
        const float value = tile.values[k * tile.value_pitch + c];
#pragma unroll
        for (int r = 0; r < kFmaRows; ++r) acc[r] += tile.weights[k * kFmaRows + r] * value;
      }
#pragma unroll
      for (int r = 0; r < kFmaRows; ++r) tile.acc[r * tile.dv + c] = acc[r];
    }
    __syncthreads();  // the next keys may be staged
  }
  if (key == 0) {
    tile.row_max[row] = row_max;
    tile.row_sum[row] = row_sum;
  }
  __syncthreads();
}

// to[i, j] = from row slot(position + i), element j.
template <typename T, typename RowOf>
__device__ __forceinline__ void stage_rows(float* to, int pitch, int count, int width,
                                           const RowOf& row_of) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int i = warp; i < count; i += kFmaThreads / kWarp) {
    const T* row = row_of(i);
    for (int j = lane; j < width; j += kWarp) to[i * pitch + j] = to_f32(row[j]);
  }
}

// The same of a cache row: codes times the row's scale.
template <typename T, typename RowOf, typename ScaleOf>
__device__ __forceinline__ void stage_cache_rows(float* to, int pitch, int count, int width,
                                                 const RowOf& row_of, const ScaleOf& scale_of) {
  if constexpr (!kIsCode<T>) {
    stage_rows<T>(to, pitch, count, width, row_of);
  } else {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    for (int i = warp; i < count; i += kFmaThreads / kWarp) {
      const T* row = row_of(i);
      const float scale = scale_of(i);
      for (int j = lane; j < width; j += kWarp) to[i * pitch + j] = stored_number(row[j]) * scale;
    }
  }
}

// mla_decode (kSharedValues: v is k) and gqa_attention. Grid: (items, kv_heads). tile_rows is
// kFmaRows.
template <typename TQ, typename TCache, bool kSharedValues>
__global__ void __launch_bounds__(kFmaThreads) paged_fma_kernel(PagedCall call) {
  SHOAL_DYN_SMEM(float, smem);
  if (static_cast<int32_t>(blockIdx.x) >= call.work.counts[0]) return;  // the whole block
  const auto kv = static_cast<int32_t>(blockIdx.y);
  const WorkItem item = call.work.items[blockIdx.x];
  const Tile tile = make_tile(call, item, kv);
  if (tile.pairs <= 0) return;

  const FmaTile fma(smem, call.d, call.dv, kSharedValues);
  stage_rows<TQ>(fma.q, call.d, tile.pairs, call.d, [&](int pair) {
    return static_cast<const TQ*>(call.q) + tile.token(pair) * call.q_token +
           tile.head(pair) * call.q_head;
  });
  for (int i = threadIdx.x; i < kFmaRows * call.dv; i += kFmaThreads) fma.acc[i] = 0;
  if (threadIdx.x < kFmaRows) {
    fma.num_keys[threadIdx.x] = tile.num_keys(threadIdx.x);
    fma.row_max[threadIdx.x] = -INFINITY;
    fma.row_sum[threadIdx.x] = 0;
  }
  fma_attend(fma, tile.key_begin, tile.key_end, call.scale, [&](int position, int count) {
    const auto slot = [&](int i) { return call.pages.slot(item.sequence, position + i); };
    constexpr bool kLatentCodes = kSharedValues && kIsCode<TCache>;
    stage_cache_rows<TCache>(
        fma.keys, fma.key_pitch, count, kLatentCodes ? call.dv : call.d,
        [&](int i) {
          return static_cast<const TCache*>(call.k) + slot(i) * call.k_slot + int64_t{kv} * call.d;
        },
        [&](int i) { return call.k_scale[slot(i) * call.k_scale_slot + kv]; });
    if constexpr (kLatentCodes) {
      stage_rows<bf16>(fma.keys + call.dv, fma.key_pitch, count, call.d - call.dv,
                       [&](int i) { return call.k_rope + slot(i) * call.k_rope_slot; });
    }
    if constexpr (!kSharedValues) {
      stage_cache_rows<TCache>(
          fma.values, fma.value_pitch, count, call.dv,
          [&](int i) {
            return static_cast<const TCache*>(call.v) + slot(i) * call.v_slot +
                   int64_t{kv} * call.dv;
          },
          [&](int i) { return call.v_scale[slot(i) * call.v_scale_slot + kv]; });
    }
  });

  for (int i = threadIdx.x; i < tile.pairs * call.dv; i += kFmaThreads) {
    const int pair = i / call.dv, c = i % call.dv;
    if (item.slot < 0) {
      out_row<TQ>(call, tile, pair)[c] =
          from_f32<TQ>(fma.acc[i] * softmax_inverse(fma.row_sum[pair]));
    } else {
      const int64_t to = partial_row(call, item.slot, kv, pair);
      call.work.acc[to * call.dv + c] = fma.acc[i];
      if (c == 0) call.work.stats[to] = make_float2(fma.row_max[pair], fma.row_sum[pair]);
    }
  }
}

}  // namespace shoal::gpu
