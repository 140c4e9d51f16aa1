// The tile form: many rows of BF16 activations times any weight, by tensor cores.
//
// A block of 8 warps computes kBM x 128 elements. x and the weight, as it is stored, come by
// cp.async into rings of slices of 64 columns in shared memory; each warp reads its operands from
// there in 16 bytes (8 columns of x), and as many as hold 8 columns of the weight, and decodes the
// latter in registers. As in the skinny form a lane's columns of k are contiguous instead of the
// 2t, 2t + 8 that mma counts, for both operands alike: that needs no ldmatrix, at the same bytes
// per instruction, and works for 4-bit weights.
//
// Bound by tensor cores when kBM = 128: 2 m n k FLOPs (times 2 for float16 weights, 3 for float32),
// with n k weights decoded m / 64 times, some 2 operations each beside 64 FMAs of the tensor core:
// 60 % of what mma.sync reaches is expected (not yet measured), which is 2/3 of an H100's peak and
// all of an A100's. With 32 or 64 rows it is bound by the bytes of the weight, read m / kBM times
// from L2 and once from DRAM, with 3 slices of 2 to 16 KiB under way per block.
//
// Scaled weights: sums over a scale group (or kUnit columns, whichever is longer) are kept apart
// and added with their scale in float32: one FMA per element and group, beside kUnit / 16 mma per 4
// of them. REQUIRES: groups begin at multiples of kUnit columns, 32 or, for integers, 16. A min
// takes the sums of x too: one mma with ones per kMmaN of the weight's (a quarter more, or half
// with 32 rows), and a second FMA.

#include "kernels/cuda/matmul_forms.h"
#include "kernels/cuda/matmul_tiles.cuh"

namespace shoal::gpu {

template <typename W, int kBM, int kUnit = 32>
struct MmaTile {
  static constexpr int kTileM = kBM;
  static constexpr int kTileN = kTileColumns;
  static constexpr int kThreads = kFormWarps * kWarp;
  static constexpr int kSlice = 64;  // columns
  // Warps over the tile: 2 x 4, or 1 x 8 for 32 rows.
  static constexpr int kWarpsM = kBM == 32 ? 1 : 2, kWarpsN = 8 / kWarpsM;
  static constexpr int kMmaM = kBM / kWarpsM / 16, kMmaN = kTileN / kWarpsN / 8;
  static constexpr int kBlocks = kBM == 128 || (kBM == 64 && WeightType<W>::kScaled) ? 1 : 2;

  static constexpr int kXRow = kSlice * 2, kWRow = kSlice * WeightType<W>::kBits / 8;  // bytes
  static constexpr int kXBytes = kBM * kXRow, kStageBytes = kXBytes + kTileN * kWRow;
  // What every GPU has for one block, less the tile map; with two blocks per SM, half of an A100's
  // 164 KiB, less the map and the 1 KiB that the driver takes of each.
  static constexpr int kFit = (kBM == 128 ? 98 : 78) * 1024 / kStageBytes;
  static constexpr int kStages = kFit < 2 ? 2 : (kFit > 4 ? 4 : kFit);
  static constexpr size_t kSmemBytes = static_cast<size_t>(kStages) * kStageBytes;
  static constexpr bool kScaled = WeightType<W>::kScaled, kAffine = WeightType<W>::kAffine;

  static __device__ void run(const MatmulTask& task, const Tile& tile) {
    SHOAL_DYN_SMEM(std::byte, smem);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int g = lane / 4, t = lane % 4;
    const int warp_m = warp / kWarpsN * (kBM / kWarpsM);
    const int warp_n = warp % kWarpsN * (kTileN / kWarpsN);

    float total[kMmaM][kMmaN][4] = {};
    float part[kMmaM][kMmaN][4] = {}, ones[kMmaM][4] = {};  // of a group; the sums of x
    const int slices = (tile.k1 - tile.k0 + kSlice - 1) / kSlice;
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < slices) load_slice(task, tile, smem + s * kStageBytes, tile.k0 + s * kSlice);
      cp_async_commit();
    }
    int group = 0, left = 0;  // of the scale group: its index, and the columns to its end
    if constexpr (kScaled) {
      group = (tile.k0 + tile.w.col_offset) >> tile.w.col_shift;
      left = (group + 1) * tile.w.block_cols - tile.w.col_offset - tile.k0;
    }
    for (int s = 0; s < slices; ++s) {
      cp_async_wait<kStages - 2>();
      __syncthreads();  // slice s is here, and everyone is done with the place of slice s - 1
      const int next = s + kStages - 1;
      if (next < slices) {
        load_slice(task, tile, smem + next % kStages * kStageBytes, tile.k0 + next * kSlice);
      }
      cp_async_commit();
      const std::byte* xs = smem + s % kStages * kStageBytes;
      const std::byte* ws = xs + kXBytes;
#pragma unroll
      for (int unit = 0; unit < kSlice / kUnit; ++unit) {
        if constexpr (!kScaled) {
          multiply(xs, ws, unit, warp_m + g, warp_n + g, t, total, ones);
        } else {
          // Past the last column there is no scale to multiply the zeros with.
          const int begin = tile.k0 + s * kSlice + kUnit * unit;
          if (begin >= tile.k1) break;
          left -= kUnit;
          const bool ends = left == 0 || begin + kUnit >= tile.k1;
          float scale[kMmaN][2], min[kMmaN][2];
          if (ends) load_scales(task, tile, warp_n + 2 * t, group, scale, min);
          multiply(xs, ws, unit, warp_m + g, warp_n + g, t, part, ones);
          if (ends) {
#pragma unroll
            for (int i = 0; i < kMmaM; ++i) {
#pragma unroll
              for (int j = 0; j < kMmaN; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                  total[i][j][e] += scale[j][e % 2] * part[i][j][e];
                  if constexpr (kAffine) total[i][j][e] += min[j][e % 2] * ones[i][e];
                  part[i][j][e] = 0;
                }
              }
              if constexpr (kAffine) {
#pragma unroll
                for (float& sum : ones[i]) sum = 0;
              }
            }
            if (left == 0) {
              ++group;
              left = tile.w.block_cols;
            }
          }
        }
      }
    }
    cp_async_wait<0>();
    store(task, tile, warp_m + g, warp_n + 2 * t, total);
  }

 private:
  // Rows of kRow bytes, in chunks of 16, placed so that the reads of a warp fall on different
  // banks: the rows that one access covers (128 bytes) and the next ones take turns at halves of a
  // row.
  template <int kRow>
  static __device__ __forceinline__ int place(int row, int chunk) {
    constexpr int kFlip = kRow >= 256 ? 1 : kRow / 32;
    const bool flipped = (row * kRow / 128 & (kRow >= 256 ? 2 : 1)) != 0;
    return row * kRow + (chunk ^ (flipped ? kFlip : 0)) * 16;
  }

  // 16 bytes into shared memory, of which the first `valid` exist. REQUIRES: valid <= 0, or `from`
  // is readable for that many.
  static __device__ __forceinline__ void load_chunk(std::byte* to, const std::byte* from,
                                                    const void* anywhere, int64_t valid,
                                                    bool aligned) {
    if (valid <= 0) {
      cp_async_16(to, anywhere, false);
    } else if (aligned && valid >= 16) {
      cp_async_16(to, from, true);
    } else {
      for (int i = 0; i < 16; ++i) to[i] = i < valid ? from[i] : std::byte{0};
    }
  }

  // Columns [k, k + kSlice) of both operands; zeros past the tile's rows and columns.
  static __device__ __forceinline__ void load_slice(const MatmulTask& task, const Tile& tile,
                                                    std::byte* to, int k) {
    const std::byte* x = static_cast<const std::byte*>(task.x) + (tile.x_first + k) * 2;
    const int x_valid = (tile.k1 - k) * 2;
    const int w_valid = static_cast<int>(WeightType<W>::bytes(tile.k1 - k));
    constexpr int kXChunks = kXRow / 16, kWChunks = kWRow / 16;
    for (int i = threadIdx.x; i < kBM * kXChunks; i += kThreads) {
      const int row = i / kXChunks, chunk = i % kXChunks;
      load_chunk(to + place<kXRow>(row, chunk), x + row * task.x_stride * 2 + chunk * 16, task.x,
                 row < tile.rows ? x_valid - chunk * 16 : 0, task.vector_x);
    }
    const std::byte* w = tile.w.data + WeightType<W>::bytes(k) + tile.n0 * tile.w.row_bytes;
    for (int i = threadIdx.x; i < kTileN * kWChunks; i += kThreads) {
      const int row = i / kWChunks, chunk = i % kWChunks;
      load_chunk(to + kXBytes + place<kWRow>(row, chunk), w + row * tile.w.row_bytes + chunk * 16,
                 tile.w.data, tile.n0 + row < task.n ? w_valid - chunk * 16 : 0, task.vector_w);
    }
  }

  // A lane's columns of x: 8, or 4 in the lower half, of a unit of 4 lanes.
  static __device__ __forceinline__ uint4 load_x(const std::byte* xs, int row, int unit, int t) {
    if constexpr (kUnit == 32) return load_16(xs + place<kXRow>(row, 4 * unit + t));
    uint4 v = {0, 0, 0, 0};
    load_8(xs + place<kXRow>(row, 2 * unit + t / 2) + t % 2 * 8, v.x, v.y);
    return v;
  }

  // The same columns of a row of the weight, as it is stored.
  static __device__ __forceinline__ void load_w(const std::byte* ws, int row, int unit, int t,
                                                uint32_t (&words)[WeightType<W>::kWords]) {
    constexpr int kWords = WeightType<W>::kWords;
    if constexpr (kWords >= 4) {
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i) {
        const uint4 v = load_16(ws + place<kWRow>(row, (4 * unit + t) * (kWords / 4) + i));
        words[4 * i] = v.x;
        words[4 * i + 1] = v.y;
        words[4 * i + 2] = v.z;
        words[4 * i + 3] = v.w;
      }
      return;
    }
    constexpr int kBytes = static_cast<int>(WeightType<W>::bytes(kUnit / 4));
    const int at = (4 * unit + t) * kBytes;  // of the row
    const std::byte* from = ws + place<kWRow>(row, at / 16) + at % 16;
    if constexpr (kBytes == 8) {
      load_8(from, words[0], words[1]);
    } else if constexpr (kBytes == 4) {
      words[0] = *reinterpret_cast<const uint32_t*>(from);
      if constexpr (kWords == 2) words[1] = 0;
    } else {
      words[0] = *reinterpret_cast<const uint16_t*>(from);
    }
  }

  // sum += kUnit columns, and ones those of x. x_row and w_row: this lane's first rows of the
  // operands.
  static __device__ __forceinline__ void multiply(const std::byte* xs, const std::byte* ws,
                                                  int unit, int x_row, int w_row, int t,
                                                  float (&sum)[kMmaM][kMmaN][4],
                                                  float (&ones)[kMmaM][4]) {
    constexpr int kWords = WeightType<W>::kWords, kParts = WeightType<W>::kParts;
    uint4 low[kMmaM], high[kMmaM];
#pragma unroll
    for (int i = 0; i < kMmaM; ++i) {
      low[i] = load_x(xs, x_row + 16 * i, unit, t);
      high[i] = load_x(xs, x_row + 16 * i + 8, unit, t);
      if constexpr (kAffine) {
        mma_m16n8k16_bf16(ones[i], {low[i].x, high[i].x, low[i].y, high[i].y}, {kOnes, kOnes});
        if constexpr (kUnit == 32) {
          mma_m16n8k16_bf16(ones[i], {low[i].z, high[i].z, low[i].w, high[i].w}, {kOnes, kOnes});
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kMmaN; ++j) {
      uint32_t words[kWords], b[kParts][4];
      load_w(ws, w_row + 8 * j, unit, t, words);
      decode8<W>(words, b);
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
#pragma unroll
        for (int i = 0; i < kMmaM; ++i) {
          mma_m16n8k16_bf16(sum[i][j], {low[i].x, high[i].x, low[i].y, high[i].y},
                            {b[p][0], b[p][1]});
          if constexpr (kUnit == 32) {
            mma_m16n8k16_bf16(sum[i][j], {low[i].z, high[i].z, low[i].w, high[i].w},
                              {b[p][2], b[p][3]});
          }
        }
      }
    }
  }

  static __device__ __forceinline__ void load_scales(const MatmulTask& task, const Tile& tile,
                                                     int column, int group,
                                                     float (&scale)[kMmaN][2],
                                                     float (&min)[kMmaN][2]) {
#pragma unroll
    for (int j = 0; j < kMmaN; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = tile.n0 + column + 8 * j + e;
        const int64_t at = scale_row_shifted(tile.w, row < task.n ? row : task.n - 1) + group;
        scale[j][e] = tile.w.scale[at];
        if constexpr (kAffine) min[j][e] = tile.w.min[at];
      }
    }
  }

  static __device__ __forceinline__ void store(const MatmulTask& task, const Tile& tile, int row,
                                               int column, const float (&sum)[kMmaM][kMmaN][4]) {
#pragma unroll
    for (int i = 0; i < kMmaM; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int at_row = row + 16 * i + 8 * h;
        if (at_row >= tile.rows) continue;
#pragma unroll
        for (int j = 0; j < kMmaN; ++j) {
          const int at = tile.n0 + column + 8 * j;
          float low = sum[i][j][2 * h], high = sum[i][j][2 * h + 1];
          if (task.pair_out && at + 1 < task.n) {
            if (task.bias != nullptr) {
              low += task.bias[at];
              high += task.bias[at + 1];
            }
            const int64_t to = tile.out_first + at_row * task.out_stride + at;
            if (task.out_bf16) {
              *reinterpret_cast<uint32_t*>(static_cast<bf16*>(task.out) + to) =
                  pack_bf16(low, high);
            } else {
              *reinterpret_cast<float2*>(static_cast<float*>(task.out) + to) = {low, high};
            }
          } else {
            if (at < task.n) store_sum(task, tile, at_row, at, low);
            if (at + 1 < task.n) store_sum(task, tile, at_row, at + 1, high);
          }
        }
      }
    }
  }
};

}  // namespace shoal::gpu

namespace shoal {
namespace {

template <class Form>
void launch_with_smem(const CudaDevice& device, const MatmulTask& task) {
  static_assert(Form::kSmemBytes + sizeof(int32_t) * (kMaxGroups + 1) <= gpu::kPortableSmem);
  gpu::launch_form<Form>(device, task, Form::kSmemBytes);
}

template <typename W, int kUnit>
void launch_rows(const CudaDevice& device, const MatmulTask& task, int rows) {
  if (rows == 32) return launch_with_smem<gpu::MmaTile<W, 32, kUnit>>(device, task);
  if (rows == 64) return launch_with_smem<gpu::MmaTile<W, 64, kUnit>>(device, task);
  launch_with_smem<gpu::MmaTile<W, 128, kUnit>>(device, task);
}

}  // namespace

void launch_tile(const CudaDevice& device, const MatmulTask& task, int rows) {
  gpu::with_weight_type(task.w_type, task.has_min, [&](auto w) {
    using W = decltype(w);
    using Number = typename gpu::WeightType<W>::Number;
    if constexpr (std::is_same_v<Number, int8_t> || std::is_same_v<Number, gpu::Int4>) {
      if (task.groups_of_16) return launch_rows<W, 16>(device, task, rows);
    }
    launch_rows<W, 32>(device, task, rows);
  });
}

}  // namespace shoal
