// Tensor-core instructions, computed for the whole warp by its last lane.
#include "emulated_cuda/device.h"

namespace shoal::emulated {
namespace {

using Four = float __attribute__((vector_size(16)));

// 8 columns, in the registers that every x86-64 and arm64 has.
struct Row {
  Four low, high;
  float& operator[](int i) { return reinterpret_cast<float*>(this)[i]; }
};

float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
float high_half(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

}  // namespace

void combine_mma_m16n8k16_bf16(void* const* operands, unsigned) {
  float a[16][16];  // [m, k]
  Row b[16];        // [k, n]
  Row d[16];        // [m, n]
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& mma = *static_cast<const Mma*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const int k = 8 * half + 2 * t;
      a[g][k] = low_half(mma.a[2 * half]);
      a[g][k + 1] = high_half(mma.a[2 * half]);
      a[g + 8][k] = low_half(mma.a[2 * half + 1]);
      a[g + 8][k + 1] = high_half(mma.a[2 * half + 1]);
      b[k][g] = low_half(mma.b[half]);
      b[k + 1][g] = high_half(mma.b[half]);
      d[g + 8 * half][2 * t] = mma.d[2 * half];
      d[g + 8 * half][2 * t + 1] = mma.d[2 * half + 1];
    }
  }
  for (int m = 0; m < 16; ++m) {
    Row sum = d[m];
    for (int k = 0; k < 16; ++k) {
      sum.low += a[m][k] * b[k].low;
      sum.high += a[m][k] * b[k].high;
    }
    d[m] = sum;
  }
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& mma = *static_cast<const Mma*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) mma.d[i] = d[g + 8 * (i / 2)][2 * t + i % 2];
  }
}

void combine_ldmatrix_x4(void* const* operands, unsigned) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto& row = *static_cast<const LoadMatrix*>(operands[8 * matrix + lane / 4]);
      memcpy(&static_cast<LoadMatrix*>(operands[lane])->out[matrix], row.row + 2 * (lane % 4), 4);
    }
  }
}

void combine_ldmatrix_x4_trans(void* const* operands, unsigned) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int row = 2 * (lane % 4), column = lane / 4;
      const auto& low = *static_cast<const LoadMatrix*>(operands[8 * matrix + row]);
      const auto& high = *static_cast<const LoadMatrix*>(operands[8 * matrix + row + 1]);
      static_cast<LoadMatrix*>(operands[lane])->out[matrix] =
          low.row[column] | static_cast<uint32_t>(high.row[column]) << 16;
    }
  }
}

}  // namespace shoal::emulated
