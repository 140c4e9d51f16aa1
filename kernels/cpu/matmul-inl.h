// The register tile of the matrix products, included once per SIMD target.
#if defined(SHOAL_KERNELS_CPU_MATMUL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SHOAL_KERNELS_CPU_MATMUL_INL_H_
#undef SHOAL_KERNELS_CPU_MATMUL_INL_H_
#else
#define SHOAL_KERNELS_CPU_MATMUL_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "hwy/cache_control.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

// Integer weights: decoded to floats a row at a time, never in registers.
struct I8 {
  int8_t value;
};
struct I4x2 {
  uint8_t bits;
};
HWY_INLINE float integer_at(const I8* row, int64_t k) { return row[k].value; }
HWY_INLINE float integer_at(const I4x2* row, int64_t k) {
  const int nibble = (row[k / 2].bits >> (k % 2 * 4)) & 15;
  return static_cast<float>((nibble ^ 8) - 8);
}
HWY_INLINE void store_one(float value, float* to) { *to = value; }
HWY_INLINE void store_one(float value, BF16* to) { *to = to_bf16(value); }

// A row of a weight inside one run of k in which its scale does not change.
template <typename T>
struct WeightRow {
  const T* data;
  int64_t ahead;  // elements to the row whose turn comes next in a direct product, to prefetch it
  HWY_INLINE VF at(int64_t k) const { return load(data + k); }
  HWY_INLINE VF tail(int64_t k, int64_t n) const { return load_n(data + k, n); }
};
template <>
struct WeightRow<F8E4M3> {
  const F8E4M3* data;
  int64_t ahead;
  VF scale_256;  // 256 * scale: exact, and (value / 256) * (256 * scale) rounds as value * scale
  HWY_INLINE VF at(int64_t k) const { return hn::Mul(load(data + k), scale_256); }
  HWY_INLINE VF tail(int64_t k, int64_t n) const { return hn::Mul(load_n(data + k, n), scale_256); }
};

// acc[i][j] += x[i] * w[j] over [k0, k1).
// With one row of x, memory is all that counts, and the hardware prefetcher starts anew in each
// row: asking for the next rows while these are computed took FP8 from 50 % to 75 % of the
// bandwidth.
template <int kM, int kN, class Row>
HWY_INLINE void accumulate(const float* const (&x)[kM], const Row (&w)[kN], int64_t k0, int64_t k1,
                           VF (&acc)[kM][kN]) {
  int64_t k = k0;
#if HWY_TARGET != HWY_SCALAR
  // FP8 takes two vectors at a time to share the decoding; each accumulator still gets them in
  // order.
  if constexpr (std::is_same_v<Row, WeightRow<F8E4M3>>) {
    for (; k + 2 * kLanes <= k1; k += 2 * kLanes) {
      SHOAL_UNROLL for (int j = 0; j < kN; ++j) {
        VF first, second;
        if (kM == 1) hwy::Prefetch(w[j].data + k + w[j].ahead);
        f8_over_256_twice(w[j].data + k, first, second);
        first = hn::Mul(first, w[j].scale_256);
        second = hn::Mul(second, w[j].scale_256);
        SHOAL_UNROLL for (int i = 0; i < kM; ++i) {
          acc[i][j] = hn::MulAdd(load(x[i] + k), first, acc[i][j]);
          acc[i][j] = hn::MulAdd(load(x[i] + k + kLanes), second, acc[i][j]);
        }
      }
    }
  }
#endif
  for (; k + kLanes <= k1; k += kLanes) {
    VF xv[kM];
    SHOAL_UNROLL for (int i = 0; i < kM; ++i) xv[i] = load(x[i] + k);
    SHOAL_UNROLL for (int j = 0; j < kN; ++j) {
      if (kM == 1) hwy::Prefetch(w[j].data + k + w[j].ahead);
      const VF wv = w[j].at(k);
      SHOAL_UNROLL for (int i = 0; i < kM; ++i) acc[i][j] = hn::MulAdd(xv[i], wv, acc[i][j]);
    }
  }
  if (k < k1) {
    const int64_t left = k1 - k;
    VF xv[kM];
    SHOAL_UNROLL for (int i = 0; i < kM; ++i) xv[i] = load_n(x[i] + k, left);
    SHOAL_UNROLL for (int j = 0; j < kN; ++j) {
      const VF wv = w[j].tail(k, left);
      SHOAL_UNROLL for (int i = 0; i < kM; ++i) acc[i][j] = hn::MulAdd(xv[i], wv, acc[i][j]);
    }
  }
}

// The scale block that column 0 of a shard lies in begins col_offset columns before it: calls
// body(k begin, k end, index of the scale) for each run of [k0, k1) inside one block.
template <class Body>
HWY_INLINE void for_scale_runs(const Weight& w, int64_t k0, int64_t k1, const Body& body) {
  int64_t block = (k0 + w.col_offset) / w.block_cols;
  for (int64_t k = k0; k < k1; ++block) {
    const int64_t end = std::min(k1, (block + 1) * w.block_cols - w.col_offset);
    body(k, end, block);
    k = end;
  }
}

HWY_INLINE const float* scale_row(const Weight& w, int64_t row) {
  return w.scale.row<const float>((row + w.row_offset) / w.block_rows);
}

// acc += x W^T for the kN weight rows `rows` over [k0, k1), decoding the weight in registers.
template <typename T, int kM, int kN>
HWY_INLINE void accumulate_weight(const float* const (&x)[kM], const Weight& w,
                                  const int64_t (&rows)[kN], int64_t k0, int64_t k1,
                                  VF (&acc)[kM][kN]) {
  if constexpr (std::is_same_v<T, F8E4M3>) {
    const F8E4M3* data[kN];
    const float* scales[kN];
    SHOAL_UNROLL for (int j = 0; j < kN; ++j) {
      data[j] = w.data.row<const F8E4M3>(rows[j]);
      scales[j] = scale_row(w, rows[j]);
    }
    for_scale_runs(w, k0, k1, [&](int64_t begin, int64_t end, int64_t block) HWY_ATTR {
      WeightRow<F8E4M3> row[kN];
      SHOAL_UNROLL for (int j = 0; j < kN; ++j) {
        row[j] = {data[j], kN * w.data.stride[0], hn::Set(DF(), 256.0f * scales[j][block])};
      }
      accumulate<kM, kN>(x, row, begin, end, acc);
    });
  } else {
    WeightRow<T> row[kN];
    SHOAL_UNROLL for (int j = 0; j < kN; ++j)
        row[j] = {w.data.row<const T>(rows[j]), kN * w.data.stride[0]};
    accumulate<kM, kN>(x, row, k0, k1, acc);
  }
}

template <typename T, typename Out>
  requires std::is_same_v<T, I8> || std::is_same_v<T, I4x2>
HWY_INLINE void decode_row(const Weight& w, int64_t row, int64_t k0, int64_t k1, Out* out) {
  const T* data = w.data.row<const T>(row);
  const float* scales = scale_row(w, row);
  for_scale_runs(w, k0, k1, [&](int64_t begin, int64_t end, int64_t block) HWY_ATTR {
    const float scale = scales[block];
    for (int64_t k = begin; k < end; ++k) store_one(integer_at(data, k) * scale, out + k - k0);
  });
}

// Decodes columns [k0, k1) of a row: the values that accumulate_weight uses, in bits.
template <typename T, typename Out>
HWY_INLINE void decode_row(const Weight& w, int64_t row, int64_t k0, int64_t k1, Out* out) {
  const T* data = w.data.row<const T>(row);
  // A panel reads a short piece of every row: the hardware does not see the next one coming.
  const T* ahead = w.data.row<const T>(std::min(row + 2, w.n() - 1)) + k0;
  if constexpr (std::is_same_v<T, F8E4M3>) {
    const float* scales = scale_row(w, row);
    for_scale_runs(w, k0, k1, [&](int64_t begin, int64_t end, int64_t block) HWY_ATTR {
      const WeightRow<T> run{data, 0, hn::Set(DF(), 256.0f * scales[block])};
      for_vectors(
          end - begin,
          [&](int64_t i) HWY_ATTR {
            hwy::Prefetch(ahead + begin - k0 + i);
            store(run.at(begin + i), out + begin - k0 + i);
          },
          [&](int64_t i, int64_t n)
              HWY_ATTR { store_n(run.tail(begin + i, n), out + begin - k0 + i, n); });
    });
  } else {
    for_vectors(
        k1 - k0,
        [&](int64_t i) HWY_ATTR {
          hwy::Prefetch(ahead + i);
          store(load(data + k0 + i), out + i);
        },
        [&](int64_t i, int64_t n) HWY_ATTR { store_n(load_n(data + k0 + i, n), out + i, n); });
  }
}

// Sums the lanes of the accumulators of a tile and writes the elements that exist.
template <int kM, int kN>
HWY_INLINE void finish_tile(const VF (&acc)[kM][kN], const MatMul& g, int64_t m0, int64_t n0,
                            int64_t valid_n) {
  SHOAL_UNROLL for (int i = 0; i < kM; ++i) {
    float* out = g.out + (m0 + i) * g.out_stride + n0;
    SHOAL_UNROLL for (int j = 0; j < kN; ++j) {
      const float sum = sum_lanes(acc[i][j]);
      if (j < valid_n) out[j] = g.bias ? sum + g.bias[n0 + j] : sum;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#endif
