// schedule_kernel: one block; which part of which tile each block of the attention kernel takes.
// combine_kernel: one block per (row, head) of a tile that was cut; a thread has four columns.
//
// The scheduler reads 8 bytes per sequence and writes 32 per item: a few microseconds, all of it
// latency; a model's layers share one (StepCuts). Its cut: parts of equal length `chunk` in key blocks, the same for all
// sequences, chosen among 32 lengths (from total / target up to three times that, and "uncut") for
// the least
//   ceil(items / target) * (chunk + kItemOverhead),
// the time of the waves that the GPU needs. As chunk >= total / target there are at most tiles +
// target items, and as a sequence that is cut has more than chunk blocks, at most 2 * target of
// them are parts: grids and memory are bounded by shapes.
//
// The combination reads 4 * dv bytes per part and row (from L2: they were just written) and writes
// dv elements; with about one part per block that the GPU holds this is a few megabytes at most,
// and its time is the latency of parts / 8 rounds of loads.
#include "kernels/cuda/split_kv.cuh"

#include <algorithm>
#include <bit>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/scan.cuh"

namespace shoal::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// What an item costs besides its keys (queries in, partial result out and in again), in key blocks.
constexpr int kItemOverhead = 2;
// Keys that a part has at least: with fewer, the waits at its start and end outweigh them.
constexpr int kMinKeys = 64;
// Longer than any sequence: nothing is cut.
constexpr int32_t kUncut = 1 << 30;
constexpr int kCombineThreads = 128;
// Leaves a thread the registers for eight loads of 16 bytes under way.
constexpr int kCombineBlocksPerSm = 8;

struct ScheduleCall {
  const int32_t* query_start;  // [S + 1]
  const int32_t* context_len;  // [S]
  int32_t num_seqs;
  int32_t heads, tile_rows, key_block;
  int32_t target, min_blocks;
  WorkItem* items;
  WorkItem* combines;
  int32_t* counts;
};

// How a sequence is worked on: `tiles` tiles of at most `blocks` key blocks.
struct SequenceWork {
  int32_t first_row, rows, context, tiles, blocks;
};

__device__ __forceinline__ SequenceWork sequence_work(const ScheduleCall& call, int32_t s) {
  SequenceWork work;
  work.first_row = call.query_start[s];
  work.rows = call.query_start[s + 1] - work.first_row;
  work.context = call.context_len[s];
  work.tiles = (work.rows * call.heads + call.tile_rows - 1) / call.tile_rows;
  work.blocks = (work.context + call.key_block - 1) / call.key_block;
  return work;
}

// The length of a part in key blocks, on all threads.
__device__ int32_t choose_chunk(const ScheduleCall& call) {
  __shared__ int64_t sums[kWarp];
  __shared__ int32_t maxima[kWarp];
  __shared__ int32_t items_of[kWarps][kWarp];
  __shared__ int32_t chosen;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  if (call.target == 0) return kUncut;
  int64_t cost = 0;
  int32_t most = 1;
  for (int32_t s = threadIdx.x; s < call.num_seqs; s += kThreads) {
    const SequenceWork work = sequence_work(call, s);
    cost += int64_t{work.tiles} * work.blocks;
    if (work.tiles > 0) most = max(most, work.blocks);
  }
  cost = block_sum(cost, sums);
  most = block_max(most, maxima);

  const int64_t even = (cost + call.target - 1) / call.target;
  const int64_t base = even > call.min_blocks ? even : call.min_blocks;
  int64_t candidate = base + (base * lane + 15) / 16;
  if (lane == kWarp - 1 || candidate > most) candidate = most > base ? most : base;
  const auto chunk = static_cast<int32_t>(candidate);
  int32_t items = 0;
  for (int32_t s = warp; s < call.num_seqs; s += kWarps) {
    const SequenceWork work = sequence_work(call, s);
    items += work.tiles * max((work.blocks + chunk - 1) / chunk, 1);
  }
  items_of[warp][lane] = items;
  __syncthreads();
  if (warp == 0) {
    int32_t total = 0;
    for (int w = 0; w < kWarps; ++w) total += items_of[w][lane];
    const int64_t waves = (int64_t{total} + call.target - 1) / call.target;
    // The least time wins, of equal ones the longest part: time and lane in one number.
    const int64_t time = waves * (chunk + kItemOverhead);
    int64_t key = time * kWarp + (kWarp - 1 - lane);
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const int64_t other = __shfl_xor_sync(kFullMask, key, offset);
      key = other < key ? other : key;
    }
    if (key % kWarp == kWarp - 1 - lane) chosen = chunk;
  }
  __syncthreads();
  return chosen;
}

__global__ void __launch_bounds__(kThreads) schedule_kernel(ScheduleCall call) {
  __shared__ int32_t scratch[kWarp];
  struct Placed {
    SequenceWork work;
    int32_t parts, item, slot, combine;
  };
  __shared__ Placed placed[kThreads];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int32_t chunk = choose_chunk(call);

  int32_t items = 0, slots = 0, combines = 0;  // so far
  for (int32_t base = 0; base < call.num_seqs; base += kThreads) {
    const int32_t s = base + static_cast<int32_t>(threadIdx.x);
    Placed mine{};
    if (s < call.num_seqs) {
      mine.work = sequence_work(call, s);
      mine.parts = max((mine.work.blocks + chunk - 1) / chunk, 1);
    }
    const bool cut = mine.parts > 1;
    const int32_t num_items = mine.work.tiles * mine.parts;
    int32_t new_items, new_slots, new_combines;
    mine.item = items + exclusive_scan(num_items, scratch, new_items);
    mine.slot = cut ? slots : -1;
    const int32_t slots_before = exclusive_scan(cut ? num_items : 0, scratch, new_slots);
    if (cut) mine.slot += slots_before;
    mine.combine = combines + exclusive_scan(cut ? mine.work.tiles : 0, scratch, new_combines);
    placed[threadIdx.x] = mine;
    __syncthreads();
    for (int i = warp; i < kThreads && base + i < call.num_seqs; i += kWarps) {
      const Placed& p = placed[i];
      for (int32_t j = lane; j < p.work.tiles * p.parts; j += kWarp) {
        const int32_t tile = j / p.parts, part = j % p.parts;
        const WorkItem item{base + i,    p.work.first_row,
                            p.work.rows, p.work.context,
                            tile,        part,
                            p.parts,     p.slot < 0 ? -1 : p.slot + j};
        call.items[p.item + j] = item;
        if (p.slot >= 0 && part == 0) call.combines[p.combine + tile] = item;
      }
    }
    __syncthreads();
    items += new_items;
    slots += new_slots;
    combines += new_combines;
  }
  if (threadIdx.x == 0) {
    call.counts[0] = items;
    call.counts[1] = combines;
  }
}

// Grid: (max_combines, kv_heads, tile_rows). Dynamic shared memory: a float per part.
template <typename TOut>
__global__ void __launch_bounds__(kCombineThreads, kCombineBlocksPerSm)
    combine_kernel(PagedCall call) {
  __shared__ float scratch[kWarp];
  SHOAL_DYN_SMEM(float, weights);
  // Whole blocks leave.
  if (static_cast<int32_t>(blockIdx.x) >= call.work.counts[1]) return;
  const auto kv = static_cast<int32_t>(blockIdx.y), pair = static_cast<int32_t>(blockIdx.z);
  const WorkItem item = call.work.combines[blockIdx.x];
  const Tile tile = make_tile(call, item, kv);
  if (pair >= tile.pairs) return;

  const int64_t first = partial_row(call, item.slot, kv, pair);
  const int64_t step = int64_t{call.kv_heads} * call.tile_rows;  // to the pair in the next part
  const float2* stats = call.work.stats + first;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  float row_max = -INFINITY;
  for (int32_t p = thread; p < item.parts; p += kCombineThreads) {
    row_max = fmaxf(row_max, stats[p * step].x);
  }
  const float shift = softmax_shift(block_max(row_max, scratch));
  float sum = 0;
  for (int32_t p = thread; p < item.parts; p += kCombineThreads) {
    weights[p] = exp2f(stats[p * step].x - shift);
    sum += stats[p * step].y * weights[p];
  }
  const float inverse = softmax_inverse(block_sum(sum, scratch));  // the weights are there, too

  const float* acc = call.work.acc + first * call.dv;
  const int64_t acc_step = step * call.dv;
  TOut* out = out_row<TOut>(call, tile, pair);
  if (call.dv % 4 == 0) {
    for (int32_t c = 4 * thread; c < call.dv; c += 4 * kCombineThreads) {
      float value[4] = {0, 0, 0, 0};
#pragma unroll 8
      for (int32_t p = 0; p < item.parts; ++p) {
        const float4 part = *reinterpret_cast<const float4*>(acc + p * acc_step + c);
        value[0] += weights[p] * part.x;
        value[1] += weights[p] * part.y;
        value[2] += weights[p] * part.z;
        value[3] += weights[p] * part.w;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) out[c + i] = from_f32<TOut>(value[i] * inverse);
    }
  } else {
    for (int32_t c = thread; c < call.dv; c += kCombineThreads) {
      float value = 0;
      for (int32_t p = 0; p < item.parts; ++p) value += weights[p] * acc[p * acc_step + c];
      out[c] = from_f32<TOut>(value * inverse);
    }
  }
}

}  // namespace

void check_batch(const PagedBatch& batch) {
  const int64_t num_seqs = batch.context_len.num_elements();
  check_i32_on_device(batch.query_start, num_seqs + 1, "query_start");
  check_i32_on_device(batch.context_len, num_seqs, "context_len");
  const Tensor& tables = batch.block_tables;
  SHOAL_CHECK(batch.page_size > 0 && tables.rank == 2 && tables.dtype == DType::kI32 &&
                  tables.dim(0) == num_seqs && tables.stride[1] == 1,
              "page_size {}, block_tables {}", batch.page_size, tables.shape_string());
}

PageTable page_table(const PagedBatch& batch) {
  const auto size = static_cast<uint32_t>(batch.page_size);
  return {batch.block_tables.as<int32_t>(), batch.block_tables.stride[0], batch.page_size,
          std::has_single_bit(size) ? std::countr_zero(size) : -1};
}

SplitPlan plan_split(const PagedCall& call, const PagedBatch& batch, int64_t num_tokens,
                     int64_t blocks_at_once) {
  SplitPlan plan;
  plan.heads = std::min(call.group, call.num_heads);
  plan.min_blocks = std::max(kMinKeys / call.key_block, 1);
  const int64_t num_seqs = std::min(batch.context_len.num_elements(), num_tokens);
  // Sequence s has ceil(rows_s * heads / tile_rows) tiles; the rows are num_tokens together.
  const int64_t rows = call.tile_rows, heads = plan.heads;
  const int64_t max_tiles = std::min(num_tokens * ((heads + rows - 1) / rows),
                                     (num_tokens * heads + num_seqs * (rows - 1)) / rows);
  const int64_t max_blocks =
      (batch.block_tables.dim(1) * batch.page_size + call.key_block - 1) / call.key_block;
  const int64_t max_parts = (max_blocks + plan.min_blocks - 1) / plan.min_blocks;
  plan.max_items = max_tiles;
  if (max_parts > 1) {
    plan.target = static_cast<int32_t>(std::max<int64_t>(blocks_at_once / call.kv_heads, 1));
    plan.max_items = std::min(max_tiles + plan.target, max_tiles * max_parts);
    plan.max_slots = std::min<int64_t>(plan.max_items, 2 * int64_t{plan.target});
    plan.max_combines = std::min<int64_t>(max_tiles, plan.target);
    plan.max_parts = std::min(max_parts, plan.max_slots);
  }
  SHOAL_CHECK(plan.max_items <= INT32_MAX, "{} tokens of {} heads", num_tokens, heads);
  return plan;
}

void schedule(PagedCall& call, const SplitPlan& plan, const PagedBatch& batch, StepCuts& cuts,
              Workspace& scratch, cudaStream_t stream) {
  const int64_t rows = plan.max_slots * call.kv_heads * call.tile_rows;
  const Tensor acc = scratch.tensor(DType::kF32, {rows, call.dv});
  const Tensor stats = scratch.tensor(DType::kF32, {rows, 2});
  const auto work_of = [&](const Tensor& items, const Tensor& combines, const Tensor& counts) {
    call.work = {items.as<WorkItem>(), combines.as<WorkItem>(), counts.as<int32_t>(),
                 acc.as<float>(), stats.as<float2>()};
  };
  const auto num_seqs = static_cast<int32_t>(batch.context_len.num_elements());
  const StepCuts::Key key{batch.query_start.data, batch.context_len.data, num_seqs,
                          plan.heads,             call.tile_rows,         call.key_block,
                          plan.target,            plan.min_blocks,        plan.max_items,
                          plan.max_combines};
  if (const StepCuts::Cut* cut = cuts.find(key)) {
    return work_of(cut->items, cut->combines, cut->counts);
  }
  constexpr auto kItemInts = static_cast<int64_t>(sizeof(WorkItem) / sizeof(int32_t));
  Workspace& memory = cuts.active() ? cuts.memory() : scratch;
  const Tensor items = memory.tensor(DType::kI32, {plan.max_items, kItemInts});
  const Tensor combines = memory.tensor(DType::kI32, {plan.max_combines, kItemInts});
  const Tensor counts = memory.tensor(DType::kI32, {2});
  work_of(items, combines, counts);
  launch(schedule_kernel, dim3(1), dim3(kThreads), 0, stream,
         ScheduleCall{batch.query_start.as<int32_t>(), batch.context_len.as<int32_t>(), num_seqs,
                      plan.heads, call.tile_rows, call.key_block, plan.target, plan.min_blocks,
                      items.as<WorkItem>(), combines.as<WorkItem>(), counts.as<int32_t>()});
  if (cuts.active()) cuts.keep({key, items, combines, counts});
}

void combine_parts(const PagedCall& call, const SplitPlan& plan, DType out_type,
                   cudaStream_t stream) {
  if (plan.max_combines == 0) return;
  const dim3 grid(static_cast<unsigned>(plan.max_combines), static_cast<unsigned>(call.kv_heads),
                  static_cast<unsigned>(call.tile_rows));
  const size_t smem = sizeof(float) * static_cast<size_t>(plan.max_parts);
  if (out_type == DType::kBF16) {
    launch(combine_kernel<bf16>, grid, dim3(kCombineThreads), smem, stream, call);
  } else {
    launch(combine_kernel<float>, grid, dim3(kCombineThreads), smem, stream, call);
  }
}

}  // namespace shoal::gpu
