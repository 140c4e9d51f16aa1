// The four forms of a product (matmul.h), each in its own file. All take a task that run_matmul has
// cut.
#pragma once

#include "kernels/cuda/matmul.h"

namespace shoal {

// Bytes that one lane reads of a row at a time, and the columns that they hold.
struct SkinnyRead {
  int32_t bytes = 0;  // 0: the form does not take this weight
  int32_t columns = 0;
  bool halves = false;  // half of them from each of two neighbouring groups of 16 columns
};
SkinnyRead skinny_read(DType type, int32_t k, WeightLayout layout);
void launch_skinny(const CudaDevice& device, const MatmulTask& task, SkinnyRead read,
                   int token_tiles);  // tiles of 8 rows: 1 or 2
constexpr int kSkinnyRows = 16;       // of the weight per warp

void launch_gemv(const CudaDevice& device, const MatmulTask& task, int rows);  // rows: 1, 4 or 8
int32_t gemv_read(DType type);  // columns that one lane reads at a time
constexpr int kGemvRows = 2;    // of the weight per warp

void launch_tile(const CudaDevice& device, const MatmulTask& task,
                 int rows);  // rows: 32, 64 or 128
constexpr int kTileColumns = 128;

void launch_fma(const CudaDevice& device, const MatmulTask& task);
constexpr int kFmaTile = 64;  // rows and columns

constexpr int kFormWarps = 8;  // of a block, in all forms

}  // namespace shoal
