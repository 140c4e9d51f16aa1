// The gemv form: up to 8 rows of x in any type and at any alignment, by FMAs. F32 activations in
// decode, and BF16 ones whose weights the skinny form cannot read 16 bytes at a time.
//
// A warp computes two rows of the weight (x is loaded once for both); its lanes take runs of kChunk
// columns, 16 bytes of the weight or 32 of a float32 one, in turn. Bound by the bytes of the weight
// while 2 rows x kM FMAs per column and lane fit beside them: float32 and bfloat16 up to 4 rows;
// int4 is bound by decoding. A run in one scale group is summed and then multiplied by its scale; a
// weight with mins is decoded in full instead, one FMA per element of it (the sums of x that min
// wants would be one addition per row of x and element, for two rows of the weight).
// Sums are taken over lanes in a tree, over the warps that share k in order, over `splits` in
// order.

#include "kernels/cuda/matmul_forms.h"
#include "kernels/cuda/matmul_tiles.cuh"

namespace shoal::gpu {

template <typename W, int kM>
struct Gemv {
  static constexpr int kTileM = kM;
  static constexpr int kThreads = kFormWarps * kWarp;
  static constexpr int kWarps = kFormWarps;
  static constexpr int kRows = kGemvRows;
  static constexpr int kBytes = std::is_same_v<W, float> ? 32 : 16;
  static constexpr int kChunk = kBytes * 8 / WeightType<W>::kBits;
  static constexpr int kStep = kWarp * kChunk;
  static constexpr int kBlocks = kM * kChunk > 64 ? 1 : 2;

  static __device__ void run(const MatmulTask& task, const Tile& tile) {
    __shared__ float sums[kWarps][kM][kRows];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int first_row = tile.n0 + warp / task.k_warps * kRows;
    float total[kRows][kM] = {};
    if (first_row < task.n) {
      const int rows[kRows] = {first_row, min(first_row + 1, task.n - 1)};
      for (int k = tile.k0 + (warp % task.k_warps * kWarp + lane) * kChunk; k < tile.k1;
           k += task.k_warps * kStep) {
        accumulate(task, tile, rows, k, total);
      }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float sum = warp_sum(total[r][m]);
        if (lane == 0) sums[warp][m][r] = sum;
      }
    }
    __syncthreads();
    const int columns = kWarps / task.k_warps * kRows;
    for (int i = threadIdx.x; i < columns * tile.rows; i += kThreads) {
      const int row = i / columns, column = i % columns;
      if (tile.n0 + column >= task.n) continue;
      float sum = 0;
      for (int j = 0; j < task.k_warps; ++j) {
        sum += sums[column / kRows * task.k_warps + j][row][column % kRows];
      }
      store_sum(task, tile, row, tile.n0 + column, sum);
    }
  }

 private:
  // total += columns [k, k + kChunk), as far as the tile has them.
  static __device__ __forceinline__ void accumulate(const MatmulTask& task, const Tile& tile,
                                                    const int (&rows)[kRows], int k,
                                                    float (&total)[kRows][kM]) {
    constexpr int kWords = WeightType<W>::kWords;
    constexpr bool kScaled = WeightType<W>::kScaled, kAffine = WeightType<W>::kAffine;
    const bool whole = task.vector_w && k + kChunk <= tile.k1;
    const std::byte* data[kRows];
    const float* scales[kRows];
    const float* mins[kRows];
    float scale[kRows], min[kRows];  // kAffine: of the chunk, if it has one
    uint32_t raw[kRows][kBytes / 4];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      data[r] = tile.w.data + rows[r] * tile.w.row_bytes;
      if constexpr (kScaled) scales[r] = tile.w.scale + scale_row(tile.w, rows[r]);
      if constexpr (kAffine) {
        mins[r] = tile.w.min + scale_row(tile.w, rows[r]);
        if (task.chunk_scales) {
          const int block = (k + tile.w.col_offset) / tile.w.block_cols;
          scale[r] = scales[r][block];
          min[r] = mins[r][block];
        }
      }
      if (whole) load_weights<kBytes>(data[r] + WeightType<W>::bytes(k), raw[r]);
    }
    float part[kRows][kM] = {};
#pragma unroll
    for (int c = 0; c < kChunk / 8; ++c) {
      const int begin = k + 8 * c, valid = tile.k1 - begin;
      if (valid <= 0) break;
      float w[kRows][8];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (whole) {
          uint32_t words[kWords];
#pragma unroll
          for (int i = 0; i < kWords; ++i) words[i] = raw[r][c * kWords + i];
          decode8<W>(words, w[r]);
        } else {
#pragma unroll
          for (int i = 0; i < 8; ++i) w[r][i] = i < valid ? decode_at<W>(data[r], begin + i) : 0.0f;
        }
        if constexpr (kScaled) {
          if (!task.chunk_scales) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              const int column = i < valid ? begin + i : begin;
              const int block = (column + tile.w.col_offset) / tile.w.block_cols;
              w[r][i] *= scales[r][block];
              if constexpr (kAffine) w[r][i] += mins[r][block];
            }
          } else if constexpr (kAffine) {
#pragma unroll
            for (int i = 0; i < 8; ++i) w[r][i] = fmaf(w[r][i], scale[r], min[r]);
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        if (m >= tile.rows) break;
        float x[8];
        load_x8(task, tile.x_first + m * task.x_stride + begin, valid, x);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int i = 0; i < 8; ++i) part[r][m] = fmaf(x[i], w[r][i], part[r][m]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float factor = 1;
      if constexpr (kScaled && !kAffine) {
        if (task.chunk_scales) factor = scales[r][(k + tile.w.col_offset) / tile.w.block_cols];
      }
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        total[r][m] =
            kScaled && !kAffine ? fmaf(factor, part[r][m], total[r][m]) : total[r][m] + part[r][m];
      }
    }
  }
};

}  // namespace shoal::gpu

namespace shoal {

int32_t gemv_read(DType type) {
  int32_t columns = 0;
  gpu::with_weight_type(type, false, [&](auto w) { columns = gpu::Gemv<decltype(w), 1>::kChunk; });
  return columns;
}

void launch_gemv(const CudaDevice& device, const MatmulTask& task, int rows) {
  gpu::with_weight_type(task.w_type, task.has_min, [&](auto w) {
    using W = decltype(w);
    if (rows == 1) return gpu::launch_form<gpu::Gemv<W, 1>>(device, task);
    if (rows == 4) return gpu::launch_form<gpu::Gemv<W, 4>>(device, task);
    gpu::launch_form<gpu::Gemv<W, 8>>(device, task);
  });
}

}  // namespace shoal
