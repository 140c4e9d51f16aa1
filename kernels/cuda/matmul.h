// Matrix products y = x W^T on the device: what linear, head_linear and grouped_linear ask for, and
// how it is done. One description (MatmulTask), four forms:
//
//   form    activations  rows    what it is                               file
//   skinny  BF16         <= 16   tensor cores, weights global -> registers  matmul_skinny.cu
//   tile    BF16         more    tensor cores, cp.async tiles               matmul_tile.cu
//   gemv    any          <= 8    FMA, a warp per pair of output rows        matmul_gemv.cu
//   fma     any          more    FMA, register tiles                        matmul_fma.cu
//
// The first two take every weight type. bfloat16 holds e4m3, int8 and int4 exactly, float16 is the
// sum of two bfloat16 and float32 of three, so every product that they add is the exact one; scales
// multiply sums over a scale group in float32 (two-level accumulation), they never round a weight. A
// min multiplies the group's sum of x, which a product with ones gives beside the weight's: the only
// form of a sum that lies as the result does, in the same lanes.
// The last two serve F32 activations, and BF16 ones where rows, shards or groups lie so that
// 16-byte reads do not fit.
//
// A row's bits depend on its own x, the weight, the form and how k is split, not on its neighbours
// or its place among the rows. Skinny and gemv split k by n, k and the number of SMs; tile and fma
// also by how many tiles the rows make, so two row counts there, as two of different forms, may
// differ in the last bits. Experts and heads never split k.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/tensor.h"
#include "kernels/base/workspace.h"
#include "kernels/cuda/cuda_device.h"

namespace shoal {

// A Weight as a kernel reads it. value(i, j) as in kernels/base/tensor.h.
struct WeightView {
  const std::byte* data = nullptr;
  const float* scale = nullptr;
  const float* min = nullptr;  // lies as scale does
  int64_t row_bytes = 0;  // from row to row
  int64_t scale_stride = 0;
  int32_t block_rows = 1, block_cols = 1, row_offset = 0, col_offset = 0;
  int32_t row_shift = 0, col_shift = 0;  // logarithms of the blocks, where those are powers of two
  bool operator==(const WeightView&) const = default;
};
// A weight in one block of rows or columns gets one that never ends and begins at 0.
WeightView weight_view(const Weight& w);

// Most groups (experts of a rank, heads) of one product: the tile scheduler keeps them in shared
// memory.
constexpr int32_t kMaxGroups = 512;

struct MatmulTask {
  const void* x = nullptr;               // [m, k] F32 | BF16
  void* out = nullptr;                   // [m, n] F32 | BF16
  const float* bias = nullptr;           // [n] or null
  int64_t x_stride = 0, out_stride = 0;  // elements from row to row
  WeightView w;                          // group 0's, [n, k]
  DType w_type = DType::kF32;
  bool has_min = false;  // all groups' weights, or none
  bool x_bf16 = false, out_bf16 = false;
  int32_t m = 0, n = 0, k = 0;

  // Heads: group g's x, weight and out begin this far behind those of g - 1.
  int32_t groups = 1;
  int64_t x_group = 0, out_group = 0, w_group_bytes = 0;

  // Experts: group g has the rows [offsets[g], offsets[g + 1]) and the weight table[g]; `w` then
  // says how all of them lie. Both in device memory.
  const WeightView* table = nullptr;
  const int32_t* offsets = nullptr;

  // How the chosen form cuts the product; set by run_matmul.
  int32_t tile_n = 0;  // columns of out per tile
  int32_t m_tiles = 0, n_tiles = 0;
  int32_t splits = 1;                       // parts of k, summed in order by a second pass
  int32_t split_k = 0;                      // columns of one part
  int32_t k_warps = 1;                      // skinny, gemv: warps of a block that share k
  float* partial = nullptr;                 // [splits, m, n]
  bool vector_x = false, vector_w = false;  // rows begin at 16 bytes
  bool chunk_scales = false;  // gemv: the columns that a lane reads at once share a scale
  bool groups_of_16 = false;  // tile: scale groups begin at multiples of 16 columns, not of 32
  bool pair_out = false;      // two neighbours of out can be stored at once
};

// How the weights of a product lie in memory: what all of them have in common.
struct WeightLayout {
  int32_t align = 16;      // every row begins at a multiple of this many bytes, 16 at most
  int32_t span = 1 << 30;  // every run of this many columns, from column 0, lies in one scale group
  bool shifts = true;      // blocks are powers of two
  void add(const WeightView& view);
};

// A product of one weight: CudaOps::linear without the library. Shapes as there, and checked there.
void own_linear(const CudaDevice& device, Workspace& scratch, const Tensor& x, const Weight& w,
                const Tensor& bias, const Tensor& out);

// Issues the product on the device's stream. `scratch` grows when k is split.
void run_matmul(const CudaDevice& device, Workspace& scratch, MatmulTask task, WeightLayout layout);

}  // namespace shoal
