// From blocks to tiles: which part of a MatmulTask a block computes, and how the result is stored.
//
// Dense products and heads get one block per tile. Experts have row counts that only the device
// knows, and a graph fixes the grid, so their blocks are persistent: each scans the offsets once (E
// integers, about a microsecond) and then takes every gridDim.x-th tile. Tiles of the same weights
// are neighbours: they run at the same time, DRAM delivers the weights once and L2 the rest.
#pragma once

#include <algorithm>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/weight_decode.cuh"

namespace shoal::gpu {

// Rows [row, row + rows) of x and out, columns n0.. of out, summed over k in [k0, k1).
struct Tile {
  WeightView w;
  int64_t x_first = 0, out_first = 0;  // elements from x and out to row `row`
  int64_t row = 0;
  int32_t rows = 0;
  int32_t n0 = 0;
  int32_t k0 = 0, k1 = 0;
  int32_t split = 0;
};

template <int kTileM>
class TileMap {
 public:
  // All threads of the block. `first` is shared memory for kMaxGroups + 1.
  __device__ TileMap(const MatmulTask& task, int32_t* first) : task_(task), first_(first) {
    if (task.offsets == nullptr) {
      total_ = static_cast<int64_t>(task.groups) * task.n_tiles * task.splits * task.m_tiles;
      return;
    }
    for (int g = threadIdx.x; g < task.groups; g += blockDim.x) {
      const int rows = task.offsets[g + 1] - task.offsets[g];
      first[g + 1] = (rows + kTileM - 1) / kTileM;
    }
    if (threadIdx.x == 0) first[0] = 0;
    __syncthreads();
    if (threadIdx.x < kWarp) {  // running sums, a warp's width at a time
      const int lane = threadIdx.x;
      int before = 0;
      for (int base = 0; base < task.groups; base += kWarp) {
        int sum = base + lane < task.groups ? first[base + lane + 1] : 0;
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
          const int left = __shfl_up_sync(kFullMask, sum, step);
          if (lane >= step) sum += left;
        }
        sum += before;
        if (base + lane < task.groups) first[base + lane + 1] = sum;
        before = __shfl_sync(kFullMask, sum, kWarp - 1);
      }
    }
    __syncthreads();
    total_ = static_cast<int64_t>(first[task.groups]) * task.n_tiles;
  }

  __device__ int64_t total() const { return total_; }

  __device__ Tile at(int64_t item) const {
    Tile tile;
    if (task_.offsets == nullptr) {
      const int m_tile = static_cast<int>(item % task_.m_tiles);
      item /= task_.m_tiles;
      tile.split = static_cast<int>(item % task_.splits);
      item /= task_.splits;
      tile.n0 = static_cast<int>(item % task_.n_tiles) * task_.tile_n;
      const int64_t group = item / task_.n_tiles;
      tile.row = static_cast<int64_t>(m_tile) * kTileM;
      tile.rows = static_cast<int>(task_.m - tile.row);
      tile.w = task_.w;
      tile.w.data += group * task_.w_group_bytes;
      tile.x_first = tile.row * task_.x_stride + group * task_.x_group;
      tile.out_first = tile.row * task_.out_stride + group * task_.out_group;
    } else {
      // The expert of the item: the last one whose first tile is not behind it.
      int low = 0, high = task_.groups;
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        (static_cast<int64_t>(first_[middle]) * task_.n_tiles <= item ? low : high) = middle;
      }
      const int m_tiles = first_[low + 1] - first_[low];
      const int64_t inside = item - static_cast<int64_t>(first_[low]) * task_.n_tiles;
      const int m_tile = static_cast<int>(inside % m_tiles);
      tile.n0 = static_cast<int>(inside / m_tiles) * task_.tile_n;
      tile.row = task_.offsets[low] + static_cast<int64_t>(m_tile) * kTileM;
      tile.rows = static_cast<int>(task_.offsets[low + 1] - tile.row);
      tile.w = task_.table[low];
      tile.x_first = tile.row * task_.x_stride;
      tile.out_first = tile.row * task_.out_stride;
    }
    if (tile.rows > kTileM) tile.rows = kTileM;
    tile.k0 = tile.split * task_.split_k;
    tile.k1 = tile.k0 + task_.split_k < task_.k ? tile.k0 + task_.split_k : task_.k;
    return tile;
  }

 private:
  const MatmulTask& task_;
  const int32_t* first_;
  int64_t total_;
};

// Every kernel of the products. Form gives kTileM, kThreads, kBlocks (resident per SM, which bounds
// the registers) and run(); run() leaves no shared memory that a thread may still read.
template <class Form>
__global__ void __launch_bounds__(Form::kThreads, Form::kBlocks) matmul_kernel(MatmulTask task) {
  __shared__ int32_t first[kMaxGroups + 1];
  const TileMap<Form::kTileM> map(task, first);
  for (int64_t item = blockIdx.x; item < map.total(); item += gridDim.x) {
    Form::run(task, map.at(item));
    __syncthreads();
  }
}

// One block per tile, or as many as the device holds at once when the tiles are counted on it.
template <class Form>
void launch_form(const CudaDevice& device, const MatmulTask& task, size_t dynamic_smem = 0) {
  int64_t blocks = static_cast<int64_t>(task.groups) * task.n_tiles * task.splits * task.m_tiles;
  if (task.offsets != nullptr) {
    const int64_t most = (task.m / Form::kTileM + static_cast<int64_t>(task.groups)) * task.n_tiles;
    blocks = std::min<int64_t>(most, static_cast<int64_t>(device.num_sms()) * Form::kBlocks);
  }
  launch(matmul_kernel<Form>, dim3(static_cast<unsigned>(blocks)), dim3(Form::kThreads),
         dynamic_smem, device.stream(), task);
}

__device__ __forceinline__ void store_element(void* to, bool is_bf16, int64_t at, float value) {
  if (is_bf16) {
    static_cast<bf16*>(to)[at] = from_f32<bf16>(value);
  } else {
    static_cast<float*>(to)[at] = value;
  }
}

// Element (row of the tile, column of out), summed over the tile's k.
__device__ __forceinline__ void store_sum(const MatmulTask& task, const Tile& tile, int row,
                                          int column, float sum) {
  if (task.partial != nullptr) {
    task.partial[(static_cast<int64_t>(tile.split) * task.m + tile.row + row) * task.n + column] =
        sum;
    return;
  }
  if (task.bias != nullptr) sum += task.bias[column];
  store_element(task.out, task.out_bf16, tile.out_first + row * task.out_stride + column, sum);
}

// Eight columns of a row of x as floats; columns from `valid` on are zeros and not read.
__device__ __forceinline__ void load_x8(const MatmulTask& task, int64_t at, int valid,
                                        float (&to)[8]) {
  if (task.x_bf16) {
    const bf16* x = static_cast<const bf16*>(task.x) + at;
    if (task.vector_x && valid >= 8) {
      const uint4 v = load_16(x);
      const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        to[2 * i] = low_bf16(pairs[i]);
        to[2 * i + 1] = high_bf16(pairs[i]);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = i < valid ? to_f32(x[i]) : 0.0f;
    return;
  }
  const float* x = static_cast<const float*>(task.x) + at;
  if (task.vector_x && valid >= 8) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 v = *reinterpret_cast<const float4*>(x + 4 * i);
      to[4 * i] = v.x;
      to[4 * i + 1] = v.y;
      to[4 * i + 2] = v.z;
      to[4 * i + 3] = v.w;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = i < valid ? x[i] : 0.0f;
}

// Where the scales of a row begin, and its mins, in elements.
__device__ __forceinline__ int64_t scale_row(const WeightView& w, int row) {
  return static_cast<int64_t>((row + w.row_offset) / w.block_rows) * w.scale_stride;
}
// The same where all blocks are powers of two (WeightLayout::shifts).
__device__ __forceinline__ int64_t scale_row_shifted(const WeightView& w, int row) {
  return static_cast<int64_t>((row + w.row_offset) >> w.row_shift) * w.scale_stride;
}

// The B operand of a product with ones, and any quarter of A: such a product sums x over k, exactly
// as the weight's product does, in every row or column of its result.
constexpr uint32_t kOnes = 0x3f803f80u;

// Element (row, column) of a weight, rounded as dequantize promises: once after the scale and once
// after the min.
template <typename W>
__device__ __forceinline__ float value_at(const WeightView& w, int64_t row, int64_t column) {
  float value = decode_at<W>(w.data + row * w.row_bytes, column);
  if constexpr (WeightType<W>::kScaled) {
    const int64_t block = (row + w.row_offset) / w.block_rows * w.scale_stride +
                          (column + w.col_offset) / w.block_cols;
    value = __fmul_rn(value, w.scale[block]);
    if constexpr (WeightType<W>::kAffine) value = __fadd_rn(value, w.min[block]);
  }
  return value;
}

}  // namespace shoal::gpu
