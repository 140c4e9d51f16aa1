// Verbs on matrix products of one weight or one per head: linear, head_linear, dequantize. The
// kernels are in matmul.h's four forms; here is who computes what, and the kernel of dequantize: a
// thread per element, bound by the bytes that it writes (only used while a model is loaded).
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_tiles.cuh"

namespace shoal {
namespace gpu {
namespace {

template <typename W>
__global__ void dequantize_kernel(WeightView w, int64_t n, int64_t k, void* out, bool out_bf16,
                                  int64_t out_stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n * k) return;
  const int64_t row = i / k, column = i % k;
  store_element(out, out_bf16, row * out_stride + column, value_at<W>(w, row, column));
}

}  // namespace
}  // namespace gpu

void own_linear(const CudaDevice& device, Workspace& scratch, const Tensor& x, const Weight& w,
                const Tensor& bias, const Tensor& out) {
  MatmulTask task{.x = x.data,
                  .out = out.data,
                  .bias = bias.defined() ? bias.as<float>() : nullptr,
                  .x_stride = x.stride[0],
                  .out_stride = out.stride[0],
                  .w = weight_view(w),
                  .w_type = w.data.dtype,
                  .has_min = w.min.defined(),
                  .x_bf16 = x.dtype == DType::kBF16,
                  .out_bf16 = out.dtype == DType::kBF16,
                  .m = static_cast<int32_t>(x.dim(0)),
                  .n = static_cast<int32_t>(w.n()),
                  .k = static_cast<int32_t>(w.k())};
  WeightLayout layout;
  layout.add(task.w);
  run_matmul(device, scratch, task, layout);
}

void CudaOps::linear(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out) {
  check_activation(x, 2, "x");
  check_activation(out, 2, "out");
  check_weight(w);
  SHOAL_CHECK(x.dim(1) == w.k() && out.dim(1) == w.n() && out.dim(0) == x.dim(0),
              "x {}, w {}, out {}", x.shape_string(), w.data.shape_string(), out.shape_string());
  if (bias.defined()) {
    SHOAL_CHECK(
        bias.dtype == DType::kF32 && bias.rank == 1 && bias.dim(0) == w.n() && bias.contiguous(),
        "bias {}", bias.shape_string());
  }
  const QuantizedTwin::Renewal renewal(twin_, x);
  if (x.dim(0) > kFewRows && dense_linear(x, w, bias, out)) return;
  own_linear(device_, scratch_, x, w, bias, out);
}

void CudaOps::head_linear(const Tensor& x, const Tensor& w, const Tensor& out) {
  check_activation(x, 3, "x");
  check_activation(out, 3, "out");
  SHOAL_CHECK(w.rank == 3 && w.dim(0) == x.dim(1) && w.dim(2) == x.dim(2) &&
                  out.dim(0) == x.dim(0) && out.dim(1) == x.dim(1) && out.dim(2) == w.dim(1),
              "x {}, w {}, out {}", x.shape_string(), w.shape_string(), out.shape_string());
  if (x.dim(1) == 0) return;
  Weight head;
  head.data = Tensor(w.data, w.dtype, {w.dim(1), w.dim(2)});
  head.data.stride = {w.stride[1], w.stride[2]};
  SHOAL_CHECK(w.dtype == DType::kF32 || w.dtype == DType::kBF16, "w {}", w.shape_string());
  check_weight(head);
  MatmulTask task{.x = x.data,
                  .out = out.data,
                  .x_stride = x.stride[0],
                  .out_stride = out.stride[0],
                  .w = weight_view(head),
                  .w_type = w.dtype,
                  .x_bf16 = x.dtype == DType::kBF16,
                  .out_bf16 = out.dtype == DType::kBF16,
                  .m = static_cast<int32_t>(x.dim(0)),
                  .n = static_cast<int32_t>(w.dim(1)),
                  .k = static_cast<int32_t>(w.dim(2)),
                  .groups = static_cast<int32_t>(x.dim(1)),
                  .x_group = x.stride[1],
                  .out_group = out.stride[1],
                  .w_group_bytes = w.stride[0] * dtype_size(w.dtype)};
  WeightLayout layout;
  layout.add(task.w);
  layout.add({.row_bytes = task.w_group_bytes, .block_cols = task.w.block_cols});
  run_matmul(device_, scratch_, task, layout);
}

void CudaOps::dequantize(const Weight& w, const Tensor& out) {
  check_weight(w);
  check_activation(out, 2, "out");
  SHOAL_CHECK(out.dim(0) == w.n() && out.dim(1) == w.k(), "w {}, out {}", w.data.shape_string(),
              out.shape_string());
  const int64_t elements = w.n() * w.k();
  if (elements == 0) return;
  constexpr int kThreads = 256;
  const dim3 grid(static_cast<unsigned>((elements + kThreads - 1) / kThreads));
  gpu::with_weight_type(w.data.dtype, w.min.defined(), [&](auto type) {
    gpu::launch(gpu::dequantize_kernel<decltype(type)>, grid, dim3(kThreads), 0, stream(),
                weight_view(w), w.n(), w.k(), out.data, out.dtype == DType::kBF16, out.stride[0]);
  });
}

}  // namespace shoal
