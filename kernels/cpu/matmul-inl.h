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

// Names a weight's type where it is one of integers in groups: each has a scale and, if kMin, a
// min.
template <typename T, bool kMin>
struct Groups {};

template <typename T>
struct WeightType {
  using Stored = T;
  static constexpr bool kScaled = std::is_same_v<T, F8E4M3>;
};
template <typename T, bool kMin>
struct WeightType<Groups<T, kMin>> {
  using Stored = T;
  static constexpr bool kScaled = true;
};

template <typename T>
HWY_INLINE const T* column(const T* row, int64_t k) {
  return row + k;
}
HWY_INLINE const I4x2* column(const I4x2* row, int64_t k) { return row + k / 2; }

// A row of a weight inside one run of k in which its scale does not change. `ahead`: stored
// elements to the row whose turn comes next in a direct product, to prefetch it. kTwice: two
// vectors of it are cheaper together, by twice().
template <typename T>
struct WeightRow {
  static constexpr bool kTwice = false;
  const T* data;
  int64_t ahead;
  HWY_INLINE VF at(int64_t k) const { return load(data + k); }
  HWY_INLINE VF tail(int64_t k, int64_t n) const { return load_n(data + k, n); }
};
template <>
struct WeightRow<F8E4M3> {
  static constexpr bool kTwice = HWY_TARGET != HWY_SCALAR;
  const F8E4M3* data;
  int64_t ahead;
  VF scale_256;  // 256 * scale: exact, and (value / 256) * (256 * scale) rounds as value * scale
  static HWY_INLINE WeightRow make(const F8E4M3* data, int64_t ahead, const float* scale,
                                   const float*, int64_t block) {
    return {data, ahead, hn::Set(DF(), 256.0f * scale[block])};
  }
  HWY_INLINE VF at(int64_t k) const { return hn::Mul(load(data + k), scale_256); }
  HWY_INLINE VF tail(int64_t k, int64_t n) const { return hn::Mul(load_n(data + k, n), scale_256); }
  HWY_INLINE void twice(int64_t k, VF& first, VF& second) const {
#if HWY_TARGET != HWY_SCALAR
    f8_over_256_twice(data + k, first, second);
    first = hn::Mul(first, scale_256);
    second = hn::Mul(second, scale_256);
#endif
  }
};
// A min costs one addition per vector of decoded weights and one broadcast per group, of each row:
// beside five instructions or more. Adding min * (sum of x over the group) afterwards would replace
// the additions of a group, two for 32 columns, by a fused one, and give other bits than
// dequantize.
template <typename T, bool kMin>
struct WeightRow<Groups<T, kMin>> {
  static constexpr bool kTwice = HWY_TARGET != HWY_SCALAR && std::is_same_v<T, I4x2>;
  const T* data;
  int64_t ahead;
  VF scale, min;
  static HWY_INLINE WeightRow make(const T* data, int64_t ahead, const float* scale,
                                   const float* min, int64_t block) {
    const VF s = hn::Set(DF(), scale[block]);
    if constexpr (kMin) return {data, ahead, s, hn::Set(DF(), min[block])};
    return {data, ahead, s, s};
  }
  // Rounded twice, as other programs that read such files do, and not fused.
  HWY_INLINE VF value(VF number) const {
    const VF product = hn::Mul(number, scale);
    return kMin ? hn::Add(product, min) : product;
  }
  HWY_INLINE VF at(int64_t k) const {
#if HWY_TARGET == HWY_SCALAR
    if constexpr (std::is_same_v<T, I4x2>) {
      const int nibble = (column(data, k)->bits >> (k % 2 * 4)) & 15;
      return value(hn::Set(DF(), static_cast<float>((nibble ^ 8) - 8)));
    } else {
      return value(load(data + k));
    }
#else
    return value(load(column(data, k)));
#endif
  }
  // A run of int4 begins at a whole byte. The lanes past its end are not zero with a min: what they
  // are multiplied with is.
  HWY_INLINE VF tail(int64_t k, int64_t n) const {
#if HWY_TARGET == HWY_SCALAR
    return at(k);  // not reached: every run is whole vectors
#else
    return value(load_n(column(data, k), n));
#endif
  }
  HWY_INLINE void twice(int64_t k, VF& first, VF& second) const {
#if HWY_TARGET != HWY_SCALAR
    if constexpr (kTwice) {
      load_twice(column(data, k), first, second);
      first = value(first);
      second = value(second);
    }
#endif
  }
};

// acc[i][j] += x[i] * w[j] over [k0, k1).
// With one row of x, memory is all that counts, and the hardware prefetcher starts anew in each
// row: asking for the next rows while these are computed took FP8 from 50 % to 75 % of the
// bandwidth.
template <int kM, int kN, class Row>
HWY_INLINE void accumulate(const float* const (&x)[kM], const Row (&w)[kN], int64_t k0, int64_t k1,
                           VF (&acc)[kM][kN]) {
  int64_t k = k0;
  // Two vectors of a weight at a time, where that shares some decoding; each accumulator still gets
  // them in order.
  if constexpr (Row::kTwice) {
    for (; k + 2 * kLanes <= k1; k += 2 * kLanes) {
      SHOAL_UNROLL for (int j = 0; j < kN; ++j) {
        VF first, second;
        if (kM == 1) hwy::Prefetch(column(w[j].data, k) + w[j].ahead);
        w[j].twice(k, first, second);
        SHOAL_UNROLL for (int i = 0; i < kM; ++i) {
          acc[i][j] = hn::MulAdd(load(x[i] + k), first, acc[i][j]);
          acc[i][j] = hn::MulAdd(load(x[i] + k + kLanes), second, acc[i][j]);
        }
      }
    }
  }
  for (; k + kLanes <= k1; k += kLanes) {
    VF xv[kM];
    SHOAL_UNROLL for (int i = 0; i < kM; ++i) xv[i] = load(x[i] + k);
    SHOAL_UNROLL for (int j = 0; j < kN; ++j) {
      if (kM == 1) hwy::Prefetch(column(w[j].data, k) + w[j].ahead);
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

// The scales of a row, and its mins or null.
struct RowScales {
  const float* scale;
  const float* min;
  RowScales() = default;
  RowScales(const Weight& w, int64_t row) {
    const int64_t at = (row + w.row_offset) / w.block_rows * w.scale.stride[0];
    scale = w.scale.as<const float>() + at;
    min = w.min.defined() ? w.min.as<const float>() + at : nullptr;
  }
  template <typename T>
  HWY_INLINE WeightRow<T> run(const typename WeightType<T>::Stored* data, int64_t ahead,
                              int64_t block) const {
    return WeightRow<T>::make(data, ahead, scale, min, block);
  }
};

// The scales of a row of W are some cache lines of their own, too few for the hardware to see them
// coming: asks for those of rows [begin, end), as far as W has them.
HWY_INLINE void prefetch_scales(const Weight& w, int64_t begin, int64_t end) {
  constexpr int64_t kLine = 64 / sizeof(float);
  const int64_t floats = (std::min(end, w.n()) - begin) * w.scale.stride[0];
  const int64_t first = begin * w.scale.stride[0];
  for (int64_t i = 0; i < floats; i += kLine) {
    hwy::Prefetch(w.scale.as<const float>() + first + i);
    if (w.min.defined()) hwy::Prefetch(w.min.as<const float>() + first + i);
  }
}

// acc += x W^T for the kN weight rows `rows` over [k0, k1), decoding the weight in registers.
template <typename T, int kM, int kN>
HWY_INLINE void accumulate_weight(const float* const (&x)[kM], const Weight& w,
                                  const int64_t (&rows)[kN], int64_t k0, int64_t k1,
                                  VF (&acc)[kM][kN]) {
  using Stored = typename WeightType<T>::Stored;
  const int64_t ahead = kN * w.data.stride[0];
  if constexpr (WeightType<T>::kScaled) {
    if (w.block_rows == 1) prefetch_scales(w, rows[0] + kN, rows[0] + 2 * kN);
    const Stored* data[kN];
    RowScales scales[kN];
    SHOAL_UNROLL for (int j = 0; j < kN; ++j) {
      data[j] = w.data.row<const Stored>(rows[j]);
      scales[j] = RowScales(w, rows[j]);
    }
    for_scale_runs(w, k0, k1, [&](int64_t begin, int64_t end, int64_t block) HWY_ATTR {
      WeightRow<T> row[kN];
      SHOAL_UNROLL for (int j = 0; j < kN; ++j) {
        row[j] = scales[j].template run<T>(data[j], ahead, block);
      }
      accumulate<kM, kN>(x, row, begin, end, acc);
    });
  } else {
    WeightRow<T> row[kN];
    SHOAL_UNROLL for (int j = 0; j < kN; ++j) row[j] = {w.data.row<const T>(rows[j]), ahead};
    accumulate<kM, kN>(x, row, k0, k1, acc);
  }
}

// Decodes columns [k0, k1) of a row: the values that accumulate_weight uses, in bits.
template <typename T, typename Out>
HWY_INLINE void decode_row(const Weight& w, int64_t row, int64_t k0, int64_t k1, Out* out) {
  using Stored = typename WeightType<T>::Stored;
  const Stored* data = w.data.row<const Stored>(row);
  // A panel reads a short piece of every row: the hardware does not see the next one coming.
  const Stored* next = w.data.row<const Stored>(std::min(row + 2, w.n() - 1));
  const auto decode = [&](const WeightRow<T>& run, int64_t begin, int64_t end) HWY_ATTR {
    for_vectors(
        end - begin,
        [&](int64_t i) HWY_ATTR {
          hwy::Prefetch(column(next, begin + i));
          store(run.at(begin + i), out + begin - k0 + i);
        },
        [&](int64_t i, int64_t n)
            HWY_ATTR { store_n(run.tail(begin + i, n), out + begin - k0 + i, n); });
  };
  if constexpr (WeightType<T>::kScaled) {
    const RowScales scales(w, row);
    for_scale_runs(w, k0, k1, [&](int64_t begin, int64_t end, int64_t block) HWY_ATTR {
      decode(scales.template run<T>(data, 0, block), begin, end);
    });
  } else {
    decode({data, 0}, k0, k1);
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
