#include "cublaslt_product.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "stream_work.h"

namespace shoal::emulated {
namespace {

constexpr int64_t kBlock = 128;

// Eight lanes, so that the compiler has something to vectorise without being allowed to reorder.
float dot(const float* a, const float* b, int64_t n) {
  constexpr int kLanes = 8;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < n; ++i) sums[i % kLanes] += a[i] * b[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

const std::array<float, 256>& e4m3_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> table{};
    for (int bits = 0; bits < 256; ++bits) {
      __nv_fp8_e4m3 value;
      value.__x = static_cast<__nv_fp8_storage_t>(bits);
      table[bits] = static_cast<float>(value);
    }
    return table;
  }();
  return values;
}

float bf16_at(const void* p, int64_t i) {
  uint16_t bits;
  std::memcpy(&bits, static_cast<const uint16_t*>(p) + i, sizeof(bits));
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

float value_at(const void* p, cudaDataType_t type, int64_t i) {
  switch (type) {
    case CUDA_R_32F: return static_cast<const float*>(p)[i];
    case CUDA_R_16BF: return bf16_at(p, i);
    case CUDA_R_16F: return __half2float(static_cast<const __half*>(p)[i]);
    default: return e4m3_values()[static_cast<const uint8_t*>(p)[i]];
  }
}

void read(const void* p, cudaDataType_t type, int64_t first, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = value_at(p, type, first + i);
}

void write(void* p, cudaDataType_t type, int64_t i, float value) {
  switch (type) {
    case CUDA_R_32F: static_cast<float*>(p)[i] = value; break;
    case CUDA_R_16BF: static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16_rn(value); break;
    default: static_cast<__half*>(p)[i] = __float2half_rn(value); break;
  }
}

// The scale of element (k block, row or column i) of an operand with `count` rows or columns, where
// the documentation has it ("Scaling Factors Layouts" of the 128-element block modes).
float scale_at(const float* scales, cublasLtMatmulMatrixScale_t mode, int64_t block, int64_t i,
               int64_t count, int64_t k) {
  if (scales == nullptr) return 1;
  switch (mode) {
    case CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F: return scales[block * count + i];
    case CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F: {
      const int64_t blocks = (k + kBlock - 1) / kBlock, stride = (blocks + 3) / 4 * 4;
      return scales[i / kBlock * stride + block];
    }
    default: return scales[0];
  }
}

int64_t scale_count(cublasLtMatmulMatrixScale_t mode, int64_t count, int64_t k) {
  const int64_t blocks = (k + kBlock - 1) / kBlock;
  switch (mode) {
    case CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F: return blocks * count;
    case CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F:
      return (blocks + 3) / 4 * 4 * ((count + kBlock - 1) / kBlock);
    default: return 1;
  }
}

}  // namespace

int64_t cublaslt_bytes(cudaDataType_t type) {
  switch (type) {
    case CUDA_R_32F: return 4;
    case CUDA_R_16BF:
    case CUDA_R_16F: return 2;
    default: return 1;
  }
}

const char* CublasLtProduct::operand_outside_device_memory() const {
  const auto inside = [](const void* p, int64_t ld, int64_t rows, int64_t cols, int64_t size) {
    return is_device_memory(p, static_cast<size_t>(((cols - 1) * ld + rows) * size));
  };
  if (!inside(a, lda, k, m, cublaslt_bytes(in))) return "A";
  if (!inside(b, ldb, k, n, cublaslt_bytes(in))) return "B";
  if (beta != 0 && !inside(c, ldc, m, n, cublaslt_bytes(out))) return "C";
  if (!inside(d, ldd, m, n, cublaslt_bytes(out))) return "D";
  if (bias != nullptr && !inside(bias, m, m, 1, cublaslt_bytes(bias_type))) return "the bias";
  const int64_t a_scales = scale_count(a_mode, m, k), b_scales = scale_count(b_mode, n, k);
  if (a_scale != nullptr && !inside(a_scale, a_scales, a_scales, 1, 4)) return "A's scales";
  if (b_scale != nullptr && !inside(b_scale, b_scales, b_scales, 1, 4)) return "B's scales";
  if (split_k > 1 && !inside(workspace, m * n, m * n, split_k, 4)) return "the workspace";
  return nullptr;
}

void CublasLtProduct::compute() const {
  const bool fp8 = in == CUDA_R_8F_E4M3;
  const auto store = [&](int64_t row, int64_t column, float sum) {
    float value = alpha * sum;
    if (beta != 0) value += beta * value_at(c, out, column * ldc + row);
    if (bias != nullptr) value += value_at(bias, bias_type, row);
    write(d, out, column * ldd + row, value);
  };
  const int64_t blocks = (k + kBlock - 1) / kBlock;
  const int64_t part = (blocks + split_k - 1) / split_k * kBlock;
  const int64_t columns_at_once = 64;
  std::vector<float> b_columns(static_cast<size_t>(std::min(n, columns_at_once) * k)), a_row(k);
  for (int64_t first = 0; first < n; first += columns_at_once) {
    const int64_t count = std::min(columns_at_once, n - first);
    for (int64_t j = 0; j < count; ++j) {
      read(b, in, (first + j) * ldb, k, b_columns.data() + j * k);
    }
    for (int64_t i = 0; i < m; ++i) {
      read(a, in, i * lda, k, a_row.data());
      for (int64_t j = 0; j < count; ++j) {
        const float* b_column = b_columns.data() + j * k;
        for (int s = 0; s < split_k; ++s) {
          const int64_t begin = std::min(s * part, k), end = std::min(begin + part, k);
          float sum = 0;
          if (!fp8) {
            sum = dot(a_row.data() + begin, b_column + begin, end - begin);
          } else {
            // Two levels: a block of 128 products, then its two scales, then the sum over blocks.
            for (int64_t at = begin; at < end; at += kBlock) {
              const float partial =
                  dot(a_row.data() + at, b_column + at, std::min(kBlock, end - at));
              sum += partial * scale_at(a_scale, a_mode, at / kBlock, i, m, k) *
                     scale_at(b_scale, b_mode, at / kBlock, first + j, n, k);
            }
          }
          if (split_k == 1)
            store(i, first + j, sum);
          else
            workspace[(s * n + first + j) * m + i] = sum;
        }
      }
    }
  }
  for (int64_t j = 0; split_k > 1 && j < n; ++j) {
    for (int64_t i = 0; i < m; ++i) {
      float sum = 0;
      for (int s = 0; s < split_k; ++s) sum += workspace[(s * n + j) * m + i];
      store(i, j, sum);
    }
  }
}

}  // namespace shoal::emulated
