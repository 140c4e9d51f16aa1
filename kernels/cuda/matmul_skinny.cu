// The skinny form: up to 16 rows of BF16 activations times any weight, by tensor cores, without
// shared memory for operands. Decode spends its time here.
//
// Bound by the bytes of the weight: n k kBits / 8, each read once, against 2 m n k FLOPs. To keep
// up with int4 at 3.3 TB/s and 8 rows an H100 would need 107 TFLOP/s of FMAs beside the decoding;
// its CUDA cores peak at 67, its tensor cores far above. The weight is the A operand (16 output
// rows), x the B operand (8 rows of x): with the roles so, one row of x wastes nothing that bounds.
// Expected, not yet measured: 80 % of copy bandwidth and more where the weight has some megabytes.
//
// mma.m16n8k16 asks of a lane pairs of k at 2t and 2t + 8. Any permutation of k that A and B share
// gives the same sum, so a lane takes k contiguous: kBytes of rows g and g + 8, at k = (4 lanes: t)
// kChunk. A warp reads 64 contiguous bytes of 16 rows, the warps that share k read neighbouring
// pieces, and four such reads per lane are under way at once: 256 threads/block x 2 blocks x 128 B
// = 64 KiB per SM, where 3.3 TB/s x 0.7 us over 132 SMs wants 18 KiB. x comes through L1, which
// nothing else uses: weights stream past it.
//
// A step of the four lanes lies in one scale group: its sum is multiplied by the scale in float32.
// int8 and int4 with short groups take shorter reads; with groups of 16 (kHalves) a lane takes four
// columns from each of two groups, and the two mma of a step add to sums of their own. A min costs
// one more mma per mma, of ones with x, which leaves the sums of x where they are needed. Split
// over k: k_warps warps of the block (summed in order through shared memory), and `splits` blocks
// when n is small (a second pass, in order).

#include "kernels/cuda/matmul_forms.h"
#include "kernels/cuda/matmul_tiles.cuh"

namespace shoal::gpu {

template <typename W, int kBytes, int kTokenTiles, bool kHalves>
struct Skinny {
  static constexpr int kTileM = 8 * kTokenTiles;
  static constexpr int kThreads = kFormWarps * kWarp;
  static constexpr int kBlocks = kTokenTiles == 1 && std::is_same_v<W, bf16> ? 3 : 2;
  static constexpr int kWarps = kFormWarps;
  static constexpr int kChunk = kBytes * 8 / WeightType<W>::kBits;  // columns of a lane's read
  static constexpr int kStep = 4 * kChunk;                          // of a warp's
  // In flight per row and lane: as registers allow.
  static constexpr int kReads = kBytes > 16 || (kChunk * kTokenTiles) > 32 ? 2 : 4;
  static constexpr int kGroups = kHalves ? 2 : 1;  // scale groups of a step
  static constexpr bool kScaled = WeightType<W>::kScaled, kAffine = WeightType<W>::kAffine;
  static_assert(kChunk % 8 == 0 && (!kHalves || (kChunk == 8 && kScaled)));

  static __device__ void run(const MatmulTask& task, const Tile& tile) {
    __shared__ float sums[kWarps][kTileM][16];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int g = lane / 4, t = lane % 4;
    const int first_row = tile.n0 + warp / task.k_warps * kSkinnyRows;
    const int k_warp = warp % task.k_warps;

    float total[kTokenTiles][4] = {};
    if (first_row < task.n) {
      // Past the end the last row is computed again and not written.
      const int rows[2] = {min(first_row + g, task.n - 1), min(first_row + g + 8, task.n - 1)};
      const std::byte* w[2];
      const float* scales[2];
      const float* mins[2];
      for (int i = 0; i < 2; ++i) {
        w[i] = tile.w.data + rows[i] * tile.w.row_bytes + t * (kBytes / kGroups);
        if constexpr (kScaled) scales[i] = tile.w.scale + scale_row_shifted(tile.w, rows[i]);
        if constexpr (kAffine) mins[i] = tile.w.min + scale_row_shifted(tile.w, rows[i]);
      }
      const bf16* x[kTokenTiles];
      bool token[kTokenTiles];
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        token[j] = 8 * j + g < tile.rows;
        x[j] = static_cast<const bf16*>(task.x) + tile.x_first +
               (token[j] ? 8 * j + g : 0) * task.x_stride;
      }
      const int stride = task.k_warps * kStep;
      for (int base = tile.k0 + k_warp * kStep; base < tile.k1; base += kReads * stride) {
        uint32_t raw[kReads][2][kBytes / 4];
        float scale[kReads][kGroups][2], min[kReads][kGroups][2];
#pragma unroll
        for (int r = 0; r < kReads; ++r) {
          const int step = base + r * stride;
          const bool inside = step + t * (kChunk / kGroups) < tile.k1;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if constexpr (kHalves) {
              load_halves(w[i] + WeightType<W>::bytes(step), inside, step + 16 + 4 * t < tile.k1,
                          raw[r][i]);
            } else if (inside) {
              load_weights<kBytes>(w[i] + WeightType<W>::bytes(step), raw[r][i]);
            } else {
#pragma unroll
              for (uint32_t& word : raw[r][i]) word = 0;
            }
            if constexpr (kScaled) {
#pragma unroll
              for (int h = 0; h < kGroups; ++h) {
                const int column = step + 16 * h;
                const int block = (column + tile.w.col_offset) >> tile.w.col_shift;
                scale[r][h][i] = column < tile.k1 ? scales[i][block] : 0.0f;
                if constexpr (kAffine) min[r][h][i] = column < tile.k1 ? mins[i][block] : 0.0f;
              }
            }
          }
        }
#pragma unroll
        for (int r = 0; r < kReads; ++r) {
          const int step = base + r * stride;
          if (step >= tile.k1) break;  // the warp as one
          const int k = step + t * (kChunk / kGroups);
          if constexpr (!kScaled) {
#pragma unroll
            for (int c = 0; c < kChunk / 8; ++c) {
              multiply(raw[r], c, x, token, k + 8 * c, tile.k1, total, total, total, total);
            }
          } else {
            float part[kGroups][kTokenTiles][4] = {}, ones[kGroups][kTokenTiles][4] = {};
#pragma unroll
            for (int c = 0; c < kChunk / 8; ++c) {
              multiply(raw[r], c, x, token, k + 8 * c, tile.k1, part[0], part[kGroups - 1], ones[0],
                       ones[kGroups - 1]);
            }
#pragma unroll
            for (int h = 0; h < kGroups; ++h) {
#pragma unroll
              for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                  total[j][i] += scale[r][h][i / 2] * part[h][j][i];
                  if constexpr (kAffine) total[j][i] += min[r][h][i / 2] * ones[h][j][i];
                }
              }
            }
          }
        }
      }
    }

#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[warp][8 * j + 2 * t + i % 2][g + i / 2 * 8] = total[j][i];
    }
    __syncthreads();
    const int columns = kWarps / task.k_warps * 16;
    for (int i = threadIdx.x; i < columns * tile.rows; i += kThreads) {
      const int row = i / columns, column = i % columns;
      if (tile.n0 + column >= task.n) continue;
      float sum = 0;
      for (int j = 0; j < task.k_warps; ++j) {
        sum += sums[column / 16 * task.k_warps + j][row][column % 16];
      }
      store_sum(task, tile, row, tile.n0 + column, sum);
    }
  }

 private:
  // Four columns at `from`, and four 16 columns on, as decode8 takes eight.
  static __device__ __forceinline__ void load_halves(const std::byte* from, bool first, bool second,
                                                     uint32_t (&to)[kBytes / 4]) {
    if constexpr (kBytes == 8) {  // int8
      to[0] = first ? *reinterpret_cast<const uint32_t*>(from) : 0;
      to[1] = second ? *reinterpret_cast<const uint32_t*>(from + 16) : 0;
    } else {
      const uint32_t low = first ? *reinterpret_cast<const uint16_t*>(from) : 0;
      const uint32_t high = second ? *reinterpret_cast<const uint16_t*>(from + 8) : 0;
      to[0] = low | high << 16;
    }
  }

  // The columns [k, k + 8) of each lane (kHalves: [k, k + 4) and [k + 16, k + 20)), as far as they
  // are below k1, of two rows of the weight and of the tokens: the first mma adds to `sum`, the
  // second to `sum2`; `ones` and `ones2` get the sums of x, for mins.
  static __device__ __forceinline__ void multiply(const uint32_t (&raw)[2][kBytes / 4], int chunk,
                                                  const bf16* const (&x)[kTokenTiles],
                                                  const bool (&token)[kTokenTiles], int k, int k1,
                                                  float (&sum)[kTokenTiles][4],
                                                  float (&sum2)[kTokenTiles][4],
                                                  float (&ones)[kTokenTiles][4],
                                                  float (&ones2)[kTokenTiles][4]) {
    constexpr int kWords = WeightType<W>::kWords, kParts = WeightType<W>::kParts;
    uint32_t low[kParts][4], high[kParts][4], words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = raw[0][chunk * kWords + i];
    decode8<W>(words, low);
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = raw[1][chunk * kWords + i];
    decode8<W>(words, high);
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      uint4 v = {0, 0, 0, 0};
      if constexpr (kHalves) {
        if (token[j] && k < k1) load_8(x[j] + k, v.x, v.y);
        if (token[j] && k + 16 < k1) load_8(x[j] + k + 16, v.z, v.w);
      } else {
        if (token[j] && k < k1) v = load_16(x[j] + k);
      }
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        mma_m16n8k16_bf16(sum[j], {low[p][0], high[p][0], low[p][1], high[p][1]}, {v.x, v.y});
        mma_m16n8k16_bf16(sum2[j], {low[p][2], high[p][2], low[p][3], high[p][3]}, {v.z, v.w});
      }
      if constexpr (kAffine) {
        mma_m16n8k16_bf16(ones[j], {kOnes, kOnes, kOnes, kOnes}, {v.x, v.y});
        mma_m16n8k16_bf16(ones2[j], {kOnes, kOnes, kOnes, kOnes}, {v.z, v.w});
      }
    }
  }
};

}  // namespace shoal::gpu

namespace shoal {
namespace {

template <typename W, int kBytes, bool kHalves = false>
void launch_tokens(const CudaDevice& device, const MatmulTask& task, int token_tiles) {
  if (token_tiles == 1) return gpu::launch_form<gpu::Skinny<W, kBytes, 1, kHalves>>(device, task);
  gpu::launch_form<gpu::Skinny<W, kBytes, 2, kHalves>>(device, task);
}

}  // namespace

SkinnyRead skinny_read(DType type, int32_t k, WeightLayout layout) {
  SkinnyRead read;
  gpu::with_weight_type(type, false, [&](auto w) {
    constexpr int kBits = gpu::WeightType<decltype(w)>::kBits;
    constexpr int kLeast = kBits;  // bytes that hold eight columns
    for (int bytes = kLeast > 16 ? kLeast : 16; bytes >= kLeast; bytes /= 2) {
      const int columns = bytes * 8 / kBits;
      // The four lanes that share a row lie in one scale group.
      const bool in_group =
          !gpu::WeightType<decltype(w)>::kScaled || (layout.shifts && layout.span >= 4 * columns);
      if (layout.align >= std::min(bytes, 16) && k % columns == 0 && in_group) {
        read = {bytes, columns};
        return;
      }
    }
    const bool integers = type == DType::kI8 || type == DType::kI4x2;
    if (integers && layout.shifts && layout.span == 16 && layout.align >= kLeast && k % 8 == 0) {
      read = {kLeast, 8, true};
    }
  });
  return read;
}

void launch_skinny(const CudaDevice& device, const MatmulTask& task, SkinnyRead read,
                   int token_tiles) {
  gpu::with_weight_type(task.w_type, task.has_min, [&](auto w) {
    using W = decltype(w);
    using Number = typename gpu::WeightType<W>::Number;
    constexpr int kLeast = gpu::WeightType<W>::kBits;
    if constexpr (std::is_same_v<Number, int8_t> || std::is_same_v<Number, gpu::Int4>) {
      if (read.halves) return launch_tokens<W, kLeast, true>(device, task, token_tiles);
    }
    if constexpr (kLeast <= 4) {
      if (read.bytes == 4) return launch_tokens<W, 4>(device, task, token_tiles);
    }
    if constexpr (kLeast <= 8) {
      if (read.bytes == 8) return launch_tokens<W, 8>(device, task, token_tiles);
    }
    launch_tokens<W, kLeast == 32 ? 32 : 16>(device, task, token_tiles);
  });
}

}  // namespace shoal
