// What the attention kernels share: the softmax state, pages, tiles of queries, and a paged call.
//
// A tile is up to tile_rows pairs (row, head) of one sequence whose heads read the same KV head:
// keys are brought in once for all of them, be they the heads of one decoded token or the tokens of
// a prefill.
#pragma once

#include <cmath>

#include "kernels/cuda/gpu.h"

namespace shoal::gpu {

// ---- Softmax
// -------------------------------------------------------------------------------------

// Scores and running maxima are kept times log2(e), so that a weight is a single exp2.
// AttentionState's row_max is in these units too.
constexpr float kLog2e = 1.44269504088896341f;

// What to subtract from scores: of a row without keys nothing, for -inf minus -inf is a NaN.
__device__ __forceinline__ float softmax_shift(float max) { return max == -INFINITY ? 0.0f : max; }

// What sums made under old_max are multiplied by when the maximum rises to new_max.
__device__ __forceinline__ float softmax_rescale(float old_max, float new_max) {
  return old_max == new_max ? 1.0f : exp2f(old_max - new_max);
}

// What the accumulator is multiplied by at the end: a row that saw no key gives zeros, a NaN stays
// one.
__device__ __forceinline__ float softmax_inverse(float sum) { return sum > 0 ? 1.0f / sum : sum; }

// ---- Pages
// ---------------------------------------------------------------------------------------

struct PageTable {
  const int32_t* pages;  // [S, max_pages]
  int64_t row_stride;
  int32_t page_size;
  int32_t
      shift;  // log2 of page_size, or -1: a shift instead of a division where it is a power of two

  // REQUIRES: position is within the sequence's context; entries past it are -1.
  __device__ __forceinline__ int64_t slot(int32_t sequence, int32_t position) const {
    const int32_t page = shift >= 0 ? position >> shift : position / page_size;
    const int64_t number = pages[sequence * row_stride + page];
    return number * page_size + (position - page * page_size);
  }
};

// ---- Work items, made on the device by split_kv.cu
// -------------------------------------------------

// Part `part` of the `parts` into which the keys of a tile are cut.
struct WorkItem {
  int32_t sequence;
  int32_t first_row;  // of the sequence in the batch
  int32_t rows;       // of the sequence
  int32_t context;
  int32_t tile;  // of the sequence
  int32_t part, parts;
  int32_t slot;  // of its partial result; -1: the tile is not cut, the result goes straight to out
};

struct SplitWork {
  const WorkItem* items;     // blockIdx.x
  const WorkItem* combines;  // one per tile that is cut: slot is that of its first part
  const int32_t* counts;     // [2]: how many of each
  float* acc;                // [slots, kv_heads, tile_rows, dv]: sums of weight * value
  float2* stats;             // [slots, kv_heads, tile_rows]: maximum and sum of weights
};

// mla_decode or gqa_attention as the kernels see it. Strides are in elements.
struct PagedCall {
  const void* q;  // [T, H, d]
  const void* k;  // [num_slots, kv_heads * d]
  const void* v;  // [num_slots, kv_heads * dv]; MLA: the same rows as k
  void* out;      // [T, H, dv]
  int64_t q_token, q_head, k_slot, v_slot, out_token, out_head;
  // Of quantised caches: scales [num_slots, kv_heads]; MLA: k and v are [num_slots, dv], k_rope is
  // [num_slots, d - dv].
  const float *k_scale, *v_scale;
  const bf16* k_rope;
  int64_t k_scale_slot, v_scale_slot, k_rope_slot;
  int32_t num_heads, d, dv;
  int32_t group, first_q_head, first_kv_head, kv_heads;
  int32_t tile_rows, key_block;
  float scale;  // softmax_scale * log2(e)
  PageTable pages;
  SplitWork work;
};

// ---- Tiles
// ---------------------------------------------------------------------------------------

struct Tile {
  WorkItem item;
  int32_t head_begin, heads;   // local query heads of the KV head
  int32_t first_pair, pairs;   // pairs <= 0: nothing here
  int32_t key_begin, key_end;  // positions of this part

  __device__ __forceinline__ int32_t row(int32_t pair) const { return (first_pair + pair) / heads; }
  __device__ __forceinline__ int64_t token(int32_t pair) const {
    return int64_t{item.first_row} + row(pair);
  }
  __device__ __forceinline__ int32_t head(int32_t pair) const {
    return head_begin + (first_pair + pair) % heads;
  }
  // Row r of the sequence sees positions [0, num_keys); pairs past the last see none.
  __device__ __forceinline__ int32_t num_keys(int32_t pair) const {
    return pair < pairs ? item.context - item.rows + row(pair) + 1 : 0;
  }
};

__device__ __forceinline__ Tile make_tile(const PagedCall& call, const WorkItem& item, int32_t kv) {
  Tile tile;
  tile.item = item;
  const int32_t first = (call.first_kv_head + kv) * call.group - call.first_q_head;
  tile.head_begin = max(first, 0);
  tile.heads = max(min(first + call.group, call.num_heads) - tile.head_begin, 0);
  tile.first_pair = item.tile * call.tile_rows;
  tile.pairs = min(item.rows * tile.heads - tile.first_pair, call.tile_rows);
  tile.key_begin = tile.key_end = 0;
  if (tile.pairs > 0) {
    const int32_t keys = max(tile.num_keys(tile.pairs - 1), 0);
    const int32_t blocks = (keys + call.key_block - 1) / call.key_block;
    const int32_t each = blocks / item.parts, longer = blocks % item.parts;  // by one block
    const int32_t first_block = each * item.part + min(item.part, longer);
    const int32_t num_blocks = each + (item.part < longer ? 1 : 0);
    tile.key_begin = first_block * call.key_block;
    tile.key_end = min((first_block + num_blocks) * call.key_block, keys);
  }
  return tile;
}

// Index of a pair's partial result in stats, and, times dv, in acc.
__device__ __forceinline__ int64_t partial_row(const PagedCall& call, int32_t slot, int32_t kv,
                                               int32_t pair) {
  return (int64_t{slot} * call.kv_heads + kv) * call.tile_rows + pair;
}

template <typename T>
__device__ __forceinline__ T* out_row(const PagedCall& call, const Tile& tile, int32_t pair) {
  return static_cast<T*>(call.out) + tile.token(pair) * call.out_token +
         tile.head(pair) * call.out_head;
}

}  // namespace shoal::gpu
