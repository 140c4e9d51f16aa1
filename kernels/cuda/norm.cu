// rms_norm and add_rms_norm: one block per row. x is read once: a thread keeps its packs of eight
// elements in registers between the sum of squares and the scaling (rows of more than kHeld packs
// per thread are read a second time, out of L2). Bound by memory: two (four with the residual)
// elements moved per output; with one row, by latency. The block's size, and with it the order of
// additions, depends on the row's length alone, so a row's result does not depend on its
// neighbours.
// Where an FP8 product follows, the same pass leaves the quantised twin of what it writes: one byte
// more written per output, instead of a kernel that reads two and writes one.
#include <algorithm>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/rows.cuh"

namespace shoal {
namespace {

using namespace gpu;

constexpr int kHeld = 2;  // packs per thread: two loads in flight, 7,168 elements in 448 threads
constexpr int kMaxThreads = 1024;

// What one thread sees of its row: pack n is elements [8 (threadIdx.x + n * blockDim.x), + 8).
struct NormRow {
  int64_t dim;
  bool aligned;
  __device__ int64_t column(int64_t n) const { return (threadIdx.x + n * blockDim.x) * kPack; }
  // Whether any lane of the warp has a pack n.
  __device__ bool warp_has(int64_t n) const {
    return (threadIdx.x / kWarp * kWarp + n * blockDim.x) * kPack < dim;
  }
};

// Scales the row whose packs `read` gives (those past kHeld; the first are in `held`) into out, and
// into the twin if there is one.
template <bool kTwin, typename Out, typename Read>
__device__ __forceinline__ void scale_row(const NormRow& row, const float (&held)[kHeld][kPack],
                                          float sum_squares, float eps, const float* weight,
                                          Out* out, const TwinView& twin, const Read& read) {
  const float factor = 1.0f / sqrtf(sum_squares / static_cast<float>(row.dim) + eps);
  const auto scale = [&](const float(&v)[kPack], int64_t column) {
    float w[kPack] = {};
    if (column < row.dim) {
      load_pack(weight + column, row.dim - column, row.aligned, w);
#pragma unroll
      for (int i = 0; i < kPack; ++i) w[i] *= v[i] * factor;
      store_pack(out + column, row.dim - column, row.aligned, w);
    }
    if constexpr (kTwin) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) w[i] = to_f32(from_f32<Out>(w[i]));
      store_twin(twin, w, column < row.dim, blockIdx.x, column, row.dim);
    }
  };
  // Whole warps: a group of the twin is made by half of one.
#pragma unroll
  for (int n = 0; n < kHeld; ++n) {
    if (row.warp_has(n)) scale(held[n], row.column(n));
  }
  for (int64_t n = kHeld; row.warp_has(n); ++n) {
    float v[kPack] = {};
    if (row.column(n) < row.dim) read(row.column(n), v);
    scale(v, row.column(n));
  }
  if constexpr (kTwin) {
    if (blockIdx.x == gridDim.x - 1) pad_twin(twin, gridDim.x, row.dim);
  }
}

__device__ __forceinline__ float squares(const float (&v)[kPack], float sum) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) sum += v[i] * v[i];
  return sum;
}

// out may be x: a pack is written by the thread that has read it, after all have read.
template <bool kTwin, typename X, typename Out>
__global__ void __launch_bounds__(kMaxThreads)
    rms_norm_kernel(const X* x, const float* __restrict__ weight, float eps, Out* out, int64_t dim,
                    int64_t x_stride, int64_t out_stride, bool aligned, TwinView twin) {
  __shared__ float scratch[kWarp];
  const NormRow row{dim, aligned};
  x += blockIdx.x * x_stride;
  const auto read = [&](int64_t column, float(&v)[kPack]) {
    load_pack(x + column, dim - column, aligned, v);
  };
  float held[kHeld][kPack], sum = 0;
#pragma unroll
  for (int n = 0; n < kHeld; ++n) {
    if (row.column(n) < dim) {
      read(row.column(n), held[n]);
      sum = squares(held[n], sum);
    }
  }
  for (int64_t n = kHeld; row.column(n) < dim; ++n) {
    float v[kPack];
    read(row.column(n), v);
    sum = squares(v, sum);
  }
  sum = block_sum(sum, scratch);
  scale_row<kTwin>(row, held, sum, eps, weight, out + blockIdx.x * out_stride, twin, read);
}

// The norm is taken of the residual as it is stored, so that it does not matter whether a later
// layer reads the residual again or this kernel keeps it.
template <bool kTwin, typename X, typename Residual, typename Out>
__global__ void __launch_bounds__(kMaxThreads)
    add_rms_norm_kernel(const X* x, Residual* residual, const float* __restrict__ weight, float eps,
                        Out* out, int64_t dim, int64_t x_stride, int64_t residual_stride,
                        int64_t out_stride, bool aligned, TwinView twin) {
  __shared__ float scratch[kWarp];
  const NormRow row{dim, aligned};
  x += blockIdx.x * x_stride;
  residual += blockIdx.x * residual_stride;
  const auto add = [&](int64_t column, float(&v)[kPack]) {
    float added[kPack];
    load_pack(residual + column, dim - column, aligned, v);
    load_pack(x + column, dim - column, aligned, added);
#pragma unroll
    for (int i = 0; i < kPack; ++i) v[i] = to_f32(from_f32<Residual>(v[i] + added[i]));
    store_pack(residual + column, dim - column, aligned, v);
  };
  float held[kHeld][kPack], sum = 0;
#pragma unroll
  for (int n = 0; n < kHeld; ++n) {
    if (row.column(n) < dim) {
      add(row.column(n), held[n]);
      sum = squares(held[n], sum);
    }
  }
  for (int64_t n = kHeld; row.column(n) < dim; ++n) {
    float v[kPack];
    add(row.column(n), v);
    sum = squares(v, sum);
  }
  sum = block_sum(sum, scratch);
  scale_row<kTwin>(row, held, sum, eps, weight, out + blockIdx.x * out_stride, twin,
                   [&](int64_t column, float(&v)[kPack]) {
                     load_pack(residual + column, dim - column, aligned, v);
                   });
}

void check_norm(const Tensor& x, const Tensor& weight, const Tensor& out) {
  check_activation(x, 2, "x");
  check_activation(out, 2, "out");
  SHOAL_CHECK(weight.dtype == DType::kF32 && weight.rank == 1 && weight.stride[0] == 1 &&
                  x.dim(0) == out.dim(0) && x.dim(1) == out.dim(1) && weight.dim(0) == x.dim(1),
              "x {}, weight {}, out {}", x.shape_string(), weight.shape_string(),
              out.shape_string());
}

// Whole warps, enough that each thread has at most kHeld packs.
dim3 threads_for(int64_t dim) {
  const int64_t threads = (packs_of(dim) + kHeld - 1) / kHeld;
  return dim3(static_cast<unsigned>(
      std::clamp<int64_t>((threads + kWarp - 1) / kWarp * kWarp, kWarp, kMaxThreads)));
}

}  // namespace

void CudaOps::rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) {
  check_norm(x, weight, out);
  if (x.dim(0) == 0 || x.dim(1) == 0) return;
  const bool aligned = packs_aligned(x) && packs_aligned(weight) && packs_aligned(out);
  const TwinView twin = twin_.room_if_wanted(out);
  with_activation_types(x, out, [&](auto from, auto to) {
    using X = decltype(from);
    using Out = decltype(to);
    with_twin<Out>(twin, [&](auto has_twin) {
      launch(rms_norm_kernel<has_twin.value, X, Out>, grid_for(x.dim(0), 1), threads_for(x.dim(1)),
             0, stream(), x.as<const X>(), weight.as<const float>(), eps, out.as<Out>(), x.dim(1),
             x.stride[0], out.stride[0], aligned, twin);
    });
  });
  if (twin.codes != nullptr) twin_.keep(out);
}

void CudaOps::add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float eps,
                           const Tensor& out) {
  check_norm(x, weight, out);
  check_activation(residual, 2, "residual");
  SHOAL_CHECK(residual.dim(0) == x.dim(0) && residual.dim(1) == x.dim(1), "x {}, residual {}",
              x.shape_string(), residual.shape_string());
  if (x.dim(0) == 0 || x.dim(1) == 0) return;
  const bool aligned =
      packs_aligned(x) && packs_aligned(residual) && packs_aligned(weight) && packs_aligned(out);
  const TwinView twin = twin_.room_if_wanted(out);
  with_activation_types(x, out, [&](auto from, auto to) {
    with_activation_type(residual, [&](auto between) {
      using X = decltype(from);
      using Residual = decltype(between);
      using Out = decltype(to);
      with_twin<Out>(twin, [&](auto has_twin) {
        launch(add_rms_norm_kernel<has_twin.value, X, Residual, Out>, grid_for(x.dim(0), 1),
               threads_for(x.dim(1)), 0, stream(), x.as<const X>(), residual.as<Residual>(),
               weight.as<const float>(), eps, out.as<Out>(), x.dim(1), x.stride[0],
               residual.stride[0], out.stride[0], aligned, twin);
      });
    });
  });
  if (twin.codes != nullptr) twin_.keep(out);
}

}  // namespace shoal
