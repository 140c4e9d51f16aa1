// Chooses the form of a product, cuts it into tiles and parts of k, and adds the parts up.
#include "kernels/cuda/matmul.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/matmul_forms.h"
#include "kernels/cuda/matmul_tiles.cuh"

namespace shoal {
namespace {

constexpr int32_t kOneBlock = 1 << 30;  // columns or rows of a block that never ends

// Largest power of two that divides v, up to `most`.
int64_t power_of_two_in(uint64_t v, int64_t most) {
  const uint64_t bits = v | static_cast<uint64_t>(most);
  return static_cast<int64_t>(bits & (~bits + 1));
}

// out = the parts of k, in order, and the bias. A thread per element: reads splits floats, which
// the product has just left in L2.
__global__ void add_parts_kernel(MatmulTask task) {
  const int64_t elements = static_cast<int64_t>(task.m) * task.n;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= elements) return;
  const int64_t row = i / task.n, column = i % task.n;
  float sum = 0;
  for (int s = 0; s < task.splits; ++s) sum += task.partial[s * elements + i];
  if (task.bias != nullptr) sum += task.bias[column];
  gpu::store_element(task.out, task.out_bf16, row * task.out_stride + column, sum);
}

void cut(MatmulTask& task, int tile_m, int tile_n) {
  task.tile_n = tile_n;
  task.m_tiles = (task.m + tile_m - 1) / tile_m;
  task.n_tiles = (task.n + tile_n - 1) / tile_n;
}

// Splits k until there are `wanted` blocks, but into parts of no fewer than `least` columns.
void split(MatmulTask& task, int64_t wanted, int32_t least) {
  constexpr int64_t kMostSplits = 16;  // the second pass reads that many floats per element
  constexpr int32_t kUnit = 128;  // a multiple of every form's step: parts begin where vectors do
  task.split_k = task.k;
  if (task.offsets != nullptr || task.groups > 1) return;  // enough blocks as it is
  const int64_t tiles = static_cast<int64_t>(task.m_tiles) * task.n_tiles;
  const int64_t splits = std::min({wanted / tiles, int64_t{task.k / least}, kMostSplits});
  if (splits < 2) return;
  task.split_k = static_cast<int32_t>((task.k + splits - 1) / splits + kUnit - 1) / kUnit * kUnit;
  task.splits = (task.k + task.split_k - 1) / task.split_k;
}

// Warps that share k: all of a block, as long as each has two steps of it.
int32_t warps_over_k(int32_t k, int32_t step) {
  int32_t warps = kFormWarps;
  while (warps > 1 && k < 2 * warps * step) warps /= 2;
  return warps;
}

}  // namespace

WeightView weight_view(const Weight& w) {
  WeightView view{.data = w.data.as<const std::byte>(),
                  .row_bytes = w.data.stride[0] * dtype_size(w.data.dtype),
                  .block_rows = kOneBlock,
                  .block_cols = kOneBlock,
                  .row_shift = std::countr_zero(static_cast<uint32_t>(kOneBlock)),
                  .col_shift = std::countr_zero(static_cast<uint32_t>(kOneBlock))};
  if (!has_scales(w.data.dtype)) return view;
  view.scale = w.scale.as<const float>();
  if (w.min.defined()) view.min = w.min.as<const float>();
  view.scale_stride = w.scale.stride[0];
  if (w.n() + w.row_offset > w.block_rows) {
    view.block_rows = w.block_rows;
    view.row_offset = w.row_offset;
    view.row_shift = std::countr_zero(static_cast<uint32_t>(w.block_rows));
  }
  if (w.k() + w.col_offset > w.block_cols) {
    view.block_cols = w.block_cols;
    view.col_offset = w.col_offset;
    view.col_shift = std::countr_zero(static_cast<uint32_t>(w.block_cols));
  }
  return view;
}

void WeightLayout::add(const WeightView& view) {
  align = static_cast<int32_t>(power_of_two_in(
      reinterpret_cast<uintptr_t>(view.data) | static_cast<uint64_t>(view.row_bytes), align));
  span = static_cast<int32_t>(
      power_of_two_in(static_cast<uint64_t>(view.col_offset | view.block_cols), span));
  shifts =
      shifts && view.block_rows == 1 << view.row_shift && view.block_cols == 1 << view.col_shift;
}

void run_matmul(const CudaDevice& device, Workspace& scratch, MatmulTask task,
                WeightLayout layout) {
  if (task.m == 0 || task.n == 0 || task.groups == 0) return;
  const int64_t x_size = task.x_bf16 ? 2 : 4, out_size = task.out_bf16 ? 2 : 4;
  const auto all = [](const void* p, int64_t stride, int64_t group, int64_t size) {
    return reinterpret_cast<uintptr_t>(p) | static_cast<uint64_t>(stride * size) |
           static_cast<uint64_t>(group * size);
  };
  task.vector_x = all(task.x, task.x_stride, task.x_group, x_size) % 16 == 0;
  task.vector_w = layout.align == 16;
  const bool scaled = has_scales(task.w_type);
  // Experts: rows of an average one. Which expert has how many is not known here.
  const int64_t rows = task.offsets == nullptr ? task.m : (task.m + task.groups - 1) / task.groups;
  const int64_t few = task.offsets == nullptr ? 8 : 4, more = task.offsets == nullptr ? 16 : 12;

  const SkinnyRead read = skinny_read(task.w_type, task.k, layout);
  const bool skinny = task.x_bf16 && task.vector_x && read.bytes > 0 && rows <= more;
  const bool gemv = !skinny && rows <= few;
  const int32_t least_span = task.w_type == DType::kF8E4M3 ? 32 : 16;
  const bool tile =
      !skinny && !gemv && task.x_bf16 && (!scaled || (layout.shifts && layout.span >= least_span));
  task.groups_of_16 = scaled && layout.span < 32;
  const int64_t sms = device.num_sms();
  int32_t tile_rows = 0;
  if (skinny) {
    tile_rows = rows <= few ? 8 : 16;
    const int32_t step = 4 * read.columns;
    task.k_warps = warps_over_k(task.k, step);
    cut(task, tile_rows, kSkinnyRows * kFormWarps / task.k_warps);
    split(task, 2 * sms, 2 * task.k_warps * step);
  } else if (gemv) {
    tile_rows = rows == 1 ? 1 : (rows <= 4 ? 4 : 8);
    const int32_t chunk = gemv_read(task.w_type);
    task.chunk_scales = layout.span >= chunk;
    task.k_warps = warps_over_k(task.k, gpu::kWarp * chunk);
    cut(task, tile_rows, kGemvRows * kFormWarps / task.k_warps);
    split(task, 2 * sms, 2 * task.k_warps * gpu::kWarp * chunk);
  } else if (tile) {
    tile_rows = rows <= 32 ? 32 : (rows <= 64 ? 64 : 128);
    cut(task, tile_rows, kTileColumns);
    split(task, sms, 512);
  } else {
    tile_rows = kFmaTile;
    cut(task, kFmaTile, kFmaTile);
    split(task, sms, 512);
  }

  const Workspace::Scope scope(scratch);
  if (task.splits > 1) {
    task.partial = scratch.tensor(DType::kF32, {task.splits, task.m, task.n}).as<float>();
  }
  task.pair_out = task.splits == 1 &&
                  all(task.out, task.out_stride, task.out_group, out_size) % (2 * out_size) == 0;
  if (skinny) {
    launch_skinny(device, task, read, tile_rows / 8);
  } else if (gemv) {
    launch_gemv(device, task, tile_rows);
  } else if (tile) {
    launch_tile(device, task, tile_rows);
  } else {
    launch_fma(device, task);
  }
  if (task.splits > 1) {
    constexpr int kThreads = 256;
    const int64_t elements = static_cast<int64_t>(task.m) * task.n;
    gpu::launch(add_parts_kernel, dim3(static_cast<unsigned>((elements + kThreads - 1) / kThreads)),
                dim3(kThreads), 0, device.stream(), task);
  }
}

}  // namespace shoal
