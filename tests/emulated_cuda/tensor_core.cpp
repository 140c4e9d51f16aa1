// Tensor-core instructions, computed for the whole warp by its last lane.
#include "emulated_cuda/device.h"

namespace shoal::emulated {
namespace {

float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
float high_half(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

}  // namespace

void combine_mma_m16n8k16_bf16(void* const* operands, unsigned) {
  float a[16][16];  // [k, m]
  float b[16][8];   // [k, n]
  float d[16][8];   // [m, n]
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& mma = *static_cast<const Mma*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const int k = 8 * half + 2 * t;
      a[k][g] = low_half(mma.a[2 * half]);
      a[k + 1][g] = high_half(mma.a[2 * half]);
      a[k][g + 8] = low_half(mma.a[2 * half + 1]);
      a[k + 1][g + 8] = high_half(mma.a[2 * half + 1]);
      b[k][g] = low_half(mma.b[half]);
      b[k + 1][g] = high_half(mma.b[half]);
      d[g + 8 * half][2 * t] = mma.d[2 * half];
      d[g + 8 * half][2 * t + 1] = mma.d[2 * half + 1];
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[k][m] * b[k][n];
    }
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
