// Two small kernels beside the library's. Both are bound by bytes, and by launch overhead at the
// sizes of a decode step (a few KiB of scales; T x n floats that are still in L2).
//   pad_columns    a block per row of scales
//   store_product  blocks of 1024 columns x rows in y; a thread converts 4 neighbouring columns
#include <algorithm>

#include "kernels/cuda/cublaslt_support.h"
#include "kernels/cuda/gpu.h"

namespace shoal {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;  // floats: one 16-byte load

__global__ void pad_columns_kernel(const float* scale, int64_t stride, int64_t cols, float* padded,
                                   int64_t padded_cols) {
  const int64_t row = blockIdx.x;
  for (int64_t j = threadIdx.x; j < padded_cols; j += blockDim.x) {
    padded[row * padded_cols + j] = j < cols ? scale[row * stride + j] : 0.0f;
  }
}

template <typename Out>
__global__ void store_product_kernel(const float* product, const float* bias, Out* out,
                                     int64_t rows, int64_t n, int64_t stride) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPerThread;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t column = first + i;
      if (column >= n) break;
      const float value = product[row * n + column] + (bias != nullptr ? bias[column] : 0.0f);
      out[row * stride + column] = gpu::from_f32<Out>(value);
    }
  }
}

// n a multiple of 4 and everything 16-byte aligned (8 where out is bfloat16).
template <typename Out>
__global__ void store_product_by_4_kernel(const float* product, const float* bias, Out* out,
                                          int64_t rows, int64_t n, int64_t stride) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPerThread;
  if (column >= n) return;
  float4 add = make_float4(0, 0, 0, 0);
  if (bias != nullptr) add = *reinterpret_cast<const float4*>(bias + column);
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float4 value = *reinterpret_cast<const float4*>(product + row * n + column);
    value = make_float4(value.x + add.x, value.y + add.y, value.z + add.z, value.w + add.w);
    if constexpr (sizeof(Out) == sizeof(float)) {
      *reinterpret_cast<float4*>(out + row * stride + column) = value;
    } else {
      *reinterpret_cast<uint2*>(out + row * stride + column) =
          make_uint2(gpu::pack_bf16(value.x, value.y), gpu::pack_bf16(value.z, value.w));
    }
  }
}

bool aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <typename Out>
void store(const Tensor& product, const Tensor& bias, const Tensor& out, cudaStream_t stream) {
  const int64_t rows = out.dim(0), n = out.dim(1), stride = rows > 1 ? out.stride[0] : n;
  const int64_t columns_per_block = kThreads * kPerThread;
  const dim3 grid(static_cast<unsigned>((n + columns_per_block - 1) / columns_per_block),
                  static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
  const auto* add = static_cast<const float*>(bias.data);
  const bool by_4 = n % kPerThread == 0 && stride % kPerThread == 0 && aligned(add, 16) &&
                    aligned(product.data, 16) && aligned(out.data, kPerThread * sizeof(Out));
  gpu::launch(by_4 ? store_product_by_4_kernel<Out> : store_product_kernel<Out>, grid, kThreads, 0,
              stream, product.as<const float>(), add, out.as<Out>(), rows, n, stride);
}

}  // namespace

void pad_columns(const Tensor& scale, const Tensor& padded, cudaStream_t stream) {
  SHOAL_CHECK(scale.dtype == DType::kF32 && padded.dtype == DType::kF32 && padded.contiguous() &&
                  padded.dim(0) == scale.dim(0) && padded.dim(1) >= scale.dim(1),
              "{} into {}", scale.shape_string(), padded.shape_string());
  if (padded.num_elements() == 0) return;
  gpu::launch(pad_columns_kernel, static_cast<unsigned>(scale.dim(0)), 128, 0, stream,
              scale.as<const float>(), scale.stride[0], scale.dim(1), padded.as<float>(),
              padded.dim(1));
}

void store_product(const Tensor& product, const Tensor& bias, const Tensor& out,
                   cudaStream_t stream) {
  SHOAL_CHECK(product.dtype == DType::kF32 && product.contiguous() &&
                  product.dim(0) >= out.dim(0) && product.dim(1) == out.dim(1),
              "{} into {}", product.shape_string(), out.shape_string());
  if (out.num_elements() == 0) return;
  if (out.dtype == DType::kBF16) {
    store<gpu::bf16>(product, bias, out, stream);
  } else {
    store<float>(product, bias, out, stream);
  }
}

}  // namespace shoal
