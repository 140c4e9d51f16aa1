// sort_by_expert and combine.
//
// sort_by_expert is a counting sort that is stable without atomics: a block takes kPairsPerBlock
// pairs that follow each other, a warp of it a part of them, again in order, and counts its part's
// experts in shared memory. Lanes with the same expert find each other by ballots; the first of
// them adds for all, the others know their rank from the lanes below. Row of a pair = rows of lower
// experts + rows of the same expert in earlier blocks, earlier warps, earlier steps of this warp,
// lower lanes. Steps of up to 2,048 pairs (256 tokens with 8 choices) take one launch; larger ones
// a first launch that counts per block, and every block of the second adds up the counts of those
// before it. Bound by latency.
//
// combine: one thread per pack of eight elements; the choices in order, in float. Bound by memory:
// top_k + 1 elements moved per output.
#include <algorithm>
#include <bit>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/scan.cuh"

namespace shoal {
namespace {

using namespace gpu;

constexpr int kSortWarps = 8;
constexpr int kSortThreads = kSortWarps * kWarp;
constexpr int32_t kPairsPerBlock = 2048;  // eight steps of a warp
// A block's counts, kSortWarps * 4 bytes per expert, stay in the 48 KiB that need no asking.
constexpr int64_t kMaxLocalExperts = 1024;

struct SortArgs {
  const int32_t* expert_ids;
  int32_t first_expert, experts, pairs;
  int32_t bits;  // that tell the values 0 .. experts apart
};

// Pairs [begin, end) of one warp.
struct Part {
  int32_t begin, end;
};
__device__ __forceinline__ Part part_of_warp(const SortArgs& args, int warp) {
  const int32_t first = static_cast<int32_t>(blockIdx.x) * kPairsPerBlock;
  const int32_t in_block = min(args.pairs - first, kPairsPerBlock);
  // Whole steps, so that only the last warp with work has idle lanes.
  const int32_t steps = (in_block + kSortThreads - 1) / kSortThreads;
  const int32_t begin = first + min(warp * steps * kWarp, in_block);
  return {begin, min(begin + steps * kWarp, first + in_block)};
}

// The local expert of pair i; `experts` for those held elsewhere and past the end.
__device__ __forceinline__ int32_t expert_of(const SortArgs& args, int32_t i, int32_t end) {
  if (i >= end) return args.experts;
  const int32_t id = args.expert_ids[i];
  const int64_t local = int64_t{id} - args.first_expert;
  return id >= 0 && local >= 0 && local < args.experts ? static_cast<int32_t>(local) : args.experts;
}

// The lanes whose value is this lane's.
__device__ __forceinline__ uint32_t lanes_alike(int32_t value, int32_t bits) {
  uint32_t lanes = kFullMask;
  for (int32_t b = 0; b < bits; ++b) {
    const bool set = (value >> b & 1) != 0;
    const uint32_t with = __ballot_sync(kFullMask, set);
    lanes &= set ? with : ~with;
  }
  return lanes;
}

// counts[e] += pairs of the part with expert e. counts belongs to this warp.
__device__ __forceinline__ void count_part(const SortArgs& args, Part part, int lane,
                                           int32_t* counts) {
  for (int32_t base = part.begin; base < part.end; base += kWarp) {
    const int32_t e = expert_of(args, base + lane, part.end);
    const uint32_t alike = lanes_alike(e, args.bits);
    if (e < args.experts && lane == __ffs(static_cast<int>(alike)) - 1) {
      counts[e] += __popc(alike);
    }
    __syncwarp();
  }
}

// Counts of every warp of the block into counts [kSortWarps, experts], ready for all threads.
__device__ __forceinline__ void count_block(const SortArgs& args, int warp, int lane,
                                            int32_t* counts) {
  for (int32_t i = threadIdx.x; i < kSortWarps * args.experts; i += kSortThreads) counts[i] = 0;
  __syncthreads();
  count_part(args, part_of_warp(args, warp), lane, counts + warp * args.experts);
  __syncthreads();
}

__global__ void count_experts_kernel(SortArgs args, int32_t* __restrict__ block_counts) {
  SHOAL_DYN_SMEM(int32_t, counts);  // [kSortWarps, experts]
  count_block(args, threadIdx.x / kWarp, threadIdx.x % kWarp, counts);
  for (int32_t e = threadIdx.x; e < args.experts; e += kSortThreads) {
    int32_t sum = 0;
    for (int w = 0; w < kSortWarps; ++w) sum += counts[w * args.experts + e];
    block_counts[int64_t{blockIdx.x} * args.experts + e] = sum;
  }
}

// block_counts [blocks, experts], or null if there is one block.
__global__ void place_pairs_kernel(SortArgs args, const int32_t* __restrict__ block_counts,
                                   int32_t top_k, int32_t* __restrict__ source_row,
                                   int32_t* __restrict__ slot, int32_t* __restrict__ offsets) {
  SHOAL_DYN_SMEM(int32_t, next);  // [kSortWarps, experts]: counts, then the next row of each
  __shared__ int32_t scratch[kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  count_block(args, warp, lane, next);

  int32_t rows = 0;  // of the experts seen so far
  for (int32_t tile = 0; tile < args.experts; tile += kSortThreads) {
    const int32_t e = tile + static_cast<int32_t>(threadIdx.x);
    int32_t before = 0, total = 0;
    if (e < args.experts) {
      if (block_counts != nullptr) {
        for (unsigned b = 0; b < gridDim.x; ++b) {
          const int32_t count = block_counts[int64_t{b} * args.experts + e];
          total += count;
          if (b < blockIdx.x) before += count;
        }
      } else {
        for (int w = 0; w < kSortWarps; ++w) total += next[w * args.experts + e];
      }
    }
    int32_t rows_of_tile;
    const int32_t first = rows + exclusive_scan(total, scratch, rows_of_tile);
    rows += rows_of_tile;
    if (e < args.experts) {
      if (blockIdx.x == 0) offsets[e] = first;
      int32_t row = first + before;
      for (int w = 0; w < kSortWarps; ++w) {
        const int32_t count = next[w * args.experts + e];
        next[w * args.experts + e] = row;
        row += count;
      }
    }
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) offsets[args.experts] = rows;
  __syncthreads();

  const Part part = part_of_warp(args, warp);
  int32_t* next_of_warp = next + warp * args.experts;
  for (int32_t base = part.begin; base < part.end; base += kWarp) {
    const int32_t i = base + lane;
    const int32_t e = expert_of(args, i, part.end);
    const uint32_t alike = lanes_alike(e, args.bits);
    const uint32_t below = alike & ((1u << lane) - 1);
    if (e < args.experts) {
      const int32_t row = next_of_warp[e] + __popc(below);
      slot[i] = row;
      source_row[row] = i / top_k;
    } else if (i < part.end) {
      slot[i] = -1;
    }
    __syncwarp();
    if (e < args.experts && below == 0) next_of_warp[e] += __popc(alike);
    __syncwarp();
  }
  // Rows that no pair has name row 0, so that a gather over all of them stays in bounds.
  for (int32_t i = part.begin + lane; i < part.end; i += kWarp) {
    if (i >= rows) source_row[i] = 0;
  }
}

template <typename Rows, typename Out>
__global__ void combine_kernel(const Rows* __restrict__ rows, const int32_t* __restrict__ slot,
                               const float* __restrict__ weights, Out* __restrict__ out,
                               int64_t tokens, int64_t dim, int32_t top_k, int64_t rows_stride,
                               int64_t weights_stride, int64_t out_stride, bool aligned) {
  const int64_t packs = (dim + kPack - 1) / kPack;
  const int64_t item = flat_thread();
  if (item >= tokens * packs) return;
  const auto [t, pack] = divide(item, packs);
  const int64_t column = pack * kPack, left = dim - column;
  float sum[kPack] = {};
  // The loads of a few choices are under way together; the additions keep their order.
#pragma unroll 4
  for (int32_t j = 0; j < top_k; ++j) {
    const int64_t row = slot[t * top_k + j];
    if (row < 0) continue;
    const float weight = weights[t * weights_stride + j];
    float v[kPack];
    load_pack(rows + row * rows_stride + column, left, aligned, v);
#pragma unroll
    for (int i = 0; i < kPack; ++i) sum[i] += weight * v[i];
  }
  store_pack(out + t * out_stride + column, left, aligned, sum);
}

}  // namespace

int64_t CudaOps::sort_by_expert(const Tensor& expert_ids, int32_t first_expert,
                                const Tensor& source_row, const Tensor& slot,
                                const Tensor& offsets) {
  SHOAL_CHECK(expert_ids.rank == 2 && offsets.rank == 1 && offsets.dim(0) >= 1,
              "ids {}, offsets {}", expert_ids.shape_string(), offsets.shape_string());
  const int64_t pairs = expert_ids.num_elements(), experts = offsets.dim(0) - 1;
  check_i32_on_device(expert_ids, pairs, "expert_ids");
  check_i32_on_device(source_row, pairs, "source_row");
  check_i32_on_device(slot, pairs, "slot");
  check_i32_on_device(offsets, experts + 1, "offsets");
  // Rows are numbered in 32 bits, and a block's last pair must not wrap.
  SHOAL_CHECK(pairs <= 0x7fffffff - kPairsPerBlock && experts <= kMaxLocalExperts,
              "ids {}, {} local experts (at most {})", expert_ids.shape_string(), experts,
              kMaxLocalExperts);
  const SortArgs args{expert_ids.as<const int32_t>(), first_expert, static_cast<int32_t>(experts),
                      static_cast<int32_t>(pairs),
                      static_cast<int32_t>(std::bit_width(static_cast<uint32_t>(experts)))};
  const auto top_k = static_cast<int32_t>(expert_ids.dim(1));
  // Without pairs, one block still writes the offsets.
  const auto blocks = std::max<int64_t>(1, (pairs + kPairsPerBlock - 1) / kPairsPerBlock);
  const dim3 grid(static_cast<unsigned>(blocks)), block(kSortThreads);
  const size_t smem = static_cast<size_t>(kSortWarps * experts) * sizeof(int32_t);
  Workspace::Scope scope(scratch_);
  int32_t* block_counts = nullptr;
  if (blocks > 1 && experts > 0) {
    block_counts = scratch_.tensor(DType::kI32, {blocks, experts}).as<int32_t>();
    launch(count_experts_kernel, grid, block, smem, stream(), args, block_counts);
  }
  launch(place_pairs_kernel, grid, block, smem, stream(), args, block_counts, top_k,
         source_row.as<int32_t>(), slot.as<int32_t>(), offsets.as<int32_t>());
  return pairs;
}

void CudaOps::combine(const Tensor& rows, const Tensor& slot, const Tensor& weights,
                      const Tensor& out) {
  check_activation(rows, 2, "rows");
  check_activation(out, 2, "out");
  check_i32_on_device(slot, slot.num_elements(), "slot");
  SHOAL_CHECK(slot.rank == 2 && slot.dim(0) == out.dim(0) && rows.dim(1) == out.dim(1) &&
                  weights.dtype == DType::kF32 && weights.rank == 2 && weights.stride[1] == 1 &&
                  weights.dim(0) == out.dim(0) && weights.dim(1) == slot.dim(1),
              "rows {}, slot {}, weights {}, out {}", rows.shape_string(), slot.shape_string(),
              weights.shape_string(), out.shape_string());
  const int64_t items = out.dim(0) * packs_of(out.dim(1));
  if (items == 0) return;
  with_activation_types(rows, out, [&](auto from, auto to) {
    using Rows = decltype(from);
    using Out = decltype(to);
    launch(combine_kernel<Rows, Out>, grid_for(items), dim3(kRowThreads), 0, stream(),
           rows.as<const Rows>(), slot.as<const int32_t>(), weights.as<const float>(),
           out.as<Out>(), out.dim(0), out.dim(1), static_cast<int32_t>(slot.dim(1)), rows.stride[0],
           weights.stride[0], out.stride[0], packs_aligned(rows) && packs_aligned(out));
  });
}

}  // namespace shoal
