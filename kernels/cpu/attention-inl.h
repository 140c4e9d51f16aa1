// The block step of online-softmax attention, included once per SIMD target.
// Per query row the operations and their order depend only on the row and on absolute positions.
#if defined(SHOAL_KERNELS_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SHOAL_KERNELS_CPU_ATTENTION_INL_H_
#undef SHOAL_KERNELS_CPU_ATTENTION_INL_H_
#else
#define SHOAL_KERNELS_CPU_ATTENTION_INL_H_
#endif

#include <limits>
#include <span>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cache-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

// Rows of a tile: 4 x 4 accumulators of scores (rows x keys) with 32 registers, 2 x 4 with 16.
inline constexpr int kTileRows = kManyRegisters ? 4 : 2;
inline constexpr int kTileKeys = 4;

// scores[r][key] = scale * q . k; -inf past `count`.
template <int kRows>
HWY_INLINE void score_block(const QueryRow* rows, const KeyBlock& block, int64_t count, float scale,
                            float (*scores)[kKeyBlock]) {
  for (int64_t key = 0; key < kKeyBlock; key += kTileKeys) {
    if (key >= count) {
      for (int r = 0; r < kRows; ++r) {
        std::fill_n(scores[r] + key, kTileKeys, -std::numeric_limits<float>::infinity());
      }
      continue;
    }
    const float* k[kTileKeys];
    for (int j = 0; j < kTileKeys; ++j) {
      k[j] = block.keys + std::min(key + j, count - 1) * block.key_stride;
    }
    VF acc[kRows][kTileKeys];
    SHOAL_UNROLL for (int r = 0; r < kRows; ++r) {
      SHOAL_UNROLL for (int j = 0; j < kTileKeys; ++j) acc[r][j] = hn::Zero(DF());
    }
    for_vectors(
        block.d,
        [&](int64_t i) HWY_ATTR {
          VF kv[kTileKeys];
          SHOAL_UNROLL for (int j = 0; j < kTileKeys; ++j) kv[j] = load(k[j] + i);
          SHOAL_UNROLL for (int r = 0; r < kRows; ++r) {
            const VF qv = load(rows[r].q + i);
            SHOAL_UNROLL for (int j = 0; j < kTileKeys; ++j) {
              acc[r][j] = hn::MulAdd(qv, kv[j], acc[r][j]);
            }
          }
        },
        [&](int64_t i, int64_t n) HWY_ATTR {
          SHOAL_UNROLL for (int r = 0; r < kRows; ++r) {
            const VF qv = load_n(rows[r].q + i, n);
            SHOAL_UNROLL for (int j = 0; j < kTileKeys; ++j) {
              acc[r][j] = hn::MulAdd(qv, load_n(k[j] + i, n), acc[r][j]);
            }
          }
        });
    SHOAL_UNROLL for (int r = 0; r < kRows; ++r) {
      SHOAL_UNROLL for (int j = 0; j < kTileKeys; ++j) {
        scores[r][key + j] = key + j < count ? scale * sum_lanes(acc[r][j])
                                             : -std::numeric_limits<float>::infinity();
      }
    }
  }
}

// Turns scores into p = exp(score - new max), updates max and sum, and returns what the accumulator
// has to be multiplied by.
HWY_INLINE float softmax_block(const QueryRow& row, float* scores) {
  VF largest = load(scores);
  for (int64_t i = kLanes; i < kKeyBlock; i += kLanes) {
    largest = hn::Max(largest, load(scores + i));
  }
  const float block_max = hn::GetLane(hn::MaxOfLanes(DF(), largest));
  const float old_max = *row.max;
  const float new_max = std::max(old_max, block_max);
  const VF shift = hn::Set(DF(), new_max);
  VF sum = hn::Zero(DF());
  for (int64_t i = 0; i < kKeyBlock; i += kLanes) {
    const VF p = exp_f32(hn::Sub(load(scores + i), shift));
    store(p, scores + i);
    sum = hn::Add(sum, p);
  }
  const float factor =
      old_max == new_max ? 1.0f : hn::GetLane(exp_f32(hn::Set(DF(), old_max - new_max)));
  *row.max = new_max;
  *row.sum = *row.sum * factor + sum_lanes(sum);
  return factor;
}

// acc = acc * factor + sum over keys, in order, of p * v.
template <int kRows>
HWY_INLINE void weigh_values(const QueryRow* rows, const KeyBlock& block, int64_t count,
                             const float (*p)[kKeyBlock], const float (&factor)[kRows]) {
  constexpr int kVectors = 4;
  int64_t i = 0;
  for (; i + kVectors * kLanes <= block.dv; i += kVectors * kLanes) {
    VF acc[kRows][kVectors];
    SHOAL_UNROLL for (int r = 0; r < kRows; ++r) {
      const VF f = hn::Set(DF(), factor[r]);
      SHOAL_UNROLL for (int v = 0; v < kVectors; ++v) {
        acc[r][v] = hn::Mul(load(rows[r].acc + i + v * kLanes), f);
      }
    }
    const float* value = block.values + i;
    for (int64_t key = 0; key < count; ++key, value += block.value_stride) {
      VF vv[kVectors];
      SHOAL_UNROLL for (int v = 0; v < kVectors; ++v) vv[v] = load(value + v * kLanes);
      SHOAL_UNROLL for (int r = 0; r < kRows; ++r) {
        const VF pv = hn::Set(DF(), p[r][key]);
        SHOAL_UNROLL for (int v = 0; v < kVectors; ++v) {
          acc[r][v] = hn::MulAdd(pv, vv[v], acc[r][v]);
        }
      }
    }
    SHOAL_UNROLL for (int r = 0; r < kRows; ++r) {
      SHOAL_UNROLL for (int v = 0; v < kVectors; ++v) {
        store(acc[r][v], rows[r].acc + i + v * kLanes);
      }
    }
  }
  for (; i < block.dv; i += kLanes) {
    const int64_t n = std::min(kLanes, block.dv - i);
    for (int r = 0; r < kRows; ++r) {
      VF acc = hn::Mul(load_n(rows[r].acc + i, n), hn::Set(DF(), factor[r]));
      for (int64_t key = 0; key < count; ++key) {
        const VF v = load_n(block.values + key * block.value_stride + i, n);
        acc = hn::MulAdd(hn::Set(DF(), p[r][key]), v, acc);
      }
      store_n(acc, rows[r].acc + i, n);
    }
  }
}

// Folds the first `count` keys of the block into kRows rows.
template <int kRows>
HWY_NOINLINE void attend_tile(const QueryRow* rows, const KeyBlock& block, int64_t count,
                              float scale) {
  alignas(64) float p[kRows][kKeyBlock];
  float factor[kRows];
  score_block<kRows>(rows, block, count, scale, p);
  for (int r = 0; r < kRows; ++r) factor[r] = softmax_block(rows[r], p[r]);
  weigh_values<kRows>(rows, block, count, p, factor);
}

// Folds a block into all rows, each as far as it sees. Rows that see the same part of the block
// share a tile; this does not change what is computed for a row.
HWY_INLINE void attend(std::span<const QueryRow> rows, const KeyBlock& block, float scale) {
  const auto visible = [&](size_t r) {
    return std::clamp<int64_t>(rows[r].num_keys - block.position, 0, block.count);
  };
  for (size_t r = 0; r < rows.size();) {
    const int64_t count = visible(r);
    size_t same = 1;
    while (same < kTileRows && r + same < rows.size() && visible(r + same) == count) ++same;
    if (count == 0) {
      r += same;
    } else if (same >= 4 && kTileRows == 4) {
      attend_tile<kTileRows>(&rows[r], block, count, scale);
      r += kTileRows;
    } else if (same >= 2) {
      attend_tile<2>(&rows[r], block, count, scale);
      r += 2;
    } else {
      attend_tile<1>(&rows[r], block, count, scale);
      r += 1;
    }
  }
}

// Rows of positions [position, position + count) as floats, one after the other at `out`.
// decode(slot, out) brings one.
template <typename Decode>
HWY_INLINE void stage_cache(const int32_t* block_table, int64_t page_size, int64_t position,
                            int64_t count, int64_t dim, float* out, const Decode& decode) {
  for (int64_t p = position; p < position + count; ++p, out += dim) {
    decode(block_table[p / page_size] * page_size + p % page_size, out);
  }
}

// out = acc / sum for a vector of a row; a row that saw no key gives zeros.
HWY_INLINE void divide_row(const float* acc, float sum, int64_t dv, float* out) {
  const VF factor = hn::Set(DF(), sum > 0 ? 1.0f / sum : sum);  // a NaN stays one
  for_vectors(
      dv, [&](int64_t i) HWY_ATTR { store(hn::Mul(load(acc + i), factor), out + i); },
      [&](int64_t i, int64_t n)
          HWY_ATTR { store_n(hn::Mul(load_n(acc + i, n), factor), out + i, n); });
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#endif
