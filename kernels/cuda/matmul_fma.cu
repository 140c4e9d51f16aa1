// The fma form: register tiles by FMAs in float32, for F32 activations (what the golden models of
// the tests run through) and for scale groups that begin nowhere useful.
//
// A block computes 64 x 64 elements, a thread 4 x 4, over k in slices of 16 that lie transposed in
// shared memory: 16 FMAs per 2 16-byte reads of it. Bound by FMAs; about half of the float32 peak
// is expected. The weight is decoded, with its scale and min, on its way into shared memory.
// An element is one chain of FMAs over k in order, within a split.

#include "kernels/cuda/matmul_forms.h"
#include "kernels/cuda/matmul_tiles.cuh"

namespace shoal::gpu {

template <typename W>
struct Fma {
  static constexpr int kTileM = kFmaTile;
  static constexpr int kTileN = kFmaTile;
  static constexpr int kThreads = kFormWarps * kWarp;
  static constexpr int kBlocks = 2;
  static constexpr int kSlice = 16;
  static constexpr int kPitch =
      kFmaTile + 4;  // 16-byte aligned; the threads of a store spread over banks

  static __device__ void run(const MatmulTask& task, const Tile& tile) {
    __shared__ __align__(16) float xs[kSlice][kPitch];
    __shared__ __align__(16) float ws[kSlice][kPitch];
    const int tm = threadIdx.x / 16 * 4, tn = threadIdx.x % 16 * 4;
    // Who loads what: 4 columns of one row of each operand.
    const int row = threadIdx.x / 4, first = threadIdx.x % 4 * 4;
    const int w_row = min(tile.n0 + row, task.n - 1);
    const std::byte* w = tile.w.data + w_row * tile.w.row_bytes;
    int64_t scales = 0;
    if constexpr (WeightType<W>::kScaled) scales = scale_row(tile.w, w_row);
    const int64_t x_row = tile.x_first + row * task.x_stride;

    float sum[4][4] = {};
    for (int k = tile.k0; k < tile.k1; k += kSlice) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = k + first + i;
        float xv = 0, wv = 0;
        if (at < tile.k1) {
          if (row < tile.rows) {
            xv = task.x_bf16 ? to_f32(static_cast<const bf16*>(task.x)[x_row + at])
                             : static_cast<const float*>(task.x)[x_row + at];
          }
          wv = decode_at<W>(w, at);
          if constexpr (WeightType<W>::kScaled) {
            const int64_t block = scales + (at + tile.w.col_offset) / tile.w.block_cols;
            wv *= tile.w.scale[block];
            if constexpr (WeightType<W>::kAffine) wv += tile.w.min[block];
          }
        }
        xs[first + i][row] = xv;
        ws[first + i][row] = wv;
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kSlice; ++i) {
        const float4 a = *reinterpret_cast<const float4*>(&xs[i][tm]);
        const float4 b = *reinterpret_cast<const float4*>(&ws[i][tn]);
        const float av[4] = {a.x, a.y, a.z, a.w}, bv[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int m = 0; m < 4; ++m) {
#pragma unroll
          for (int n = 0; n < 4; ++n) sum[m][n] = fmaf(av[m], bv[n], sum[m][n]);
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (tm + m < tile.rows && tile.n0 + tn + n < task.n) {
          store_sum(task, tile, tm + m, tile.n0 + tn + n, sum[m][n]);
        }
      }
    }
  }
};

}  // namespace shoal::gpu

namespace shoal {

void launch_fma(const CudaDevice& device, const MatmulTask& task) {
  gpu::with_weight_type(task.w_type, task.has_min,
                        [&](auto w) { gpu::launch_form<gpu::Fma<decltype(w)>>(device, task); });
}

}  // namespace shoal
