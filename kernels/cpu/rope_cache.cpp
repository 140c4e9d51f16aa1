// rope, write_cache, gather_cache.
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope_cache.cpp"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/cache-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

// A pair (a, b) becomes (a cos - b sin, b cos + a sin).
HWY_INLINE void rotate_halves(float* x, const float* cosines, const float* sines, int64_t half) {
  const auto rotate = [](VF& a, VF& b, VF c, VF s) HWY_ATTR {
    const VF first = hn::NegMulAdd(b, s, hn::Mul(a, c));
    b = hn::MulAdd(a, s, hn::Mul(b, c));
    a = first;
  };
  for_vectors(
      half,
      [&](int64_t i) HWY_ATTR {
        VF a = load(x + i), b = load(x + half + i);
        rotate(a, b, load(cosines + i), load(sines + i));
        store(a, x + i);
        store(b, x + half + i);
      },
      [&](int64_t i, int64_t n) HWY_ATTR {
        VF a = load_n(x + i, n), b = load_n(x + half + i, n);
        rotate(a, b, load_n(cosines + i, n), load_n(sines + i, n));
        store_n(a, x + i, n);
        store_n(b, x + half + i, n);
      });
}

HWY_INLINE void rotate_pairs(float* x, const float* cosines, const float* sines, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1], c = cosines[i], s = sines[i];
    x[2 * i] = a * c - b * s;
    x[2 * i + 1] = b * c + a * s;
  }
}

void rope_rows(const Tensor& x, const Tensor& positions, const Tensor& table, bool interleaved,
               int64_t begin, int64_t end) {
  const int64_t half = x.dim(2) / 2;
  for (int64_t t = begin; t < end; ++t) {
    const float* angles = table.row<float>(positions.as<int32_t>()[t]);
    for (int64_t h = 0; h < x.dim(1); ++h) {
      float* head = x.row<float>(t) + h * x.stride[1];
      if (interleaved) {
        rotate_pairs(head, angles, angles + half, half);
      } else {
        rotate_halves(head, angles, angles + half, half);
      }
    }
  }
}

// The largest magnitude of n values; a NaN counts as larger than all. Without their sign bits floats
// are in the order of their bits.
HWY_INLINE float largest_magnitude(const float* x, int64_t n) {
  const DI32 di;
  const auto magnitude = [&](VF v)
                             HWY_ATTR { return hn::BitCast(di, hn::Abs(v)); };
  auto most = hn::Zero(di);
  for_vectors(
      n, [&](int64_t i) HWY_ATTR { most = hn::Max(most, magnitude(load(x + i))); },
      [&](int64_t i, int64_t left)
          HWY_ATTR { most = hn::Max(most, magnitude(load_n(x + i, left))); });
  return std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(di, most)));
}

// The codes of a row and their scales.
template <typename Code>
HWY_INLINE void quantise_row(const float* x, int64_t n, int64_t groups, float limit, Code* codes,
                             float* scales) {
  const int64_t group = n / groups;
  for (int64_t g = 0; g < groups; ++g, x += group, codes += group) {
    const float most = largest_magnitude(x, group);
    const bool zeros = most < kCacheMinMax;
    scales[g] = zeros               ? 0.0f
                : std::isfinite(most) ? most / limit
                                      : std::numeric_limits<float>::quiet_NaN();
    const VF factor = hn::Set(DF(), zeros || !std::isfinite(most) ? 0.0f : limit / most);
    for_vectors(
        group, [&](int64_t i) HWY_ATTR { store(hn::Mul(load(x + i), factor), codes + i); },
        [&](int64_t i, int64_t left)
            HWY_ATTR { store_n(hn::Mul(load_n(x + i, left), factor), codes + i, left); });
  }
}

void write_cache_rows(const Tensor& x, const Tensor& slots, const CacheTensor& cache, int64_t begin,
                      int64_t end) {
  const Tensor& data = cache.data;
  const int64_t n = data.dim(1);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t slot = slots.as<int32_t>()[t];
    const float* row = x.row<float>(t);
    switch (data.dtype) {
      case DType::kF32: convert(row, n, data.row<float>(slot)); break;
      case DType::kBF16: convert(row, n, data.row<BF16>(slot)); break;
      case DType::kF8E4M3:
        quantise_row(row, n, cache.groups(), cache_limit(data.dtype), data.row<F8E4M3>(slot),
                     cache.scale.row<float>(slot));
        break;
      default:
        quantise_row(row, n, cache.groups(), cache_limit(data.dtype), data.row<I8>(slot),
                     cache.scale.row<float>(slot));
    }
    if (cache.rope.defined()) {
      convert(row + n, cache.rope.dim(1), cache.rope.row<BF16>(slot));
    }
  }
}

void gather_cache_rows(const CacheTensor& cache, const Tensor& block_table, int32_t page_size,
                       int64_t first_position, const Tensor& out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t position = first_position + i;
    const int64_t page = block_table.as<int32_t>()[position / page_size];
    decode_cache_row(cache, page * page_size + position % page_size, out.row<float>(i));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {

HWY_EXPORT(rope_rows);
HWY_EXPORT(write_cache_rows);
HWY_EXPORT(gather_cache_rows);

void CpuOps::rope(const Tensor& x, const Tensor& positions, const Tensor& table, bool interleaved) {
  check_f32(x, 3, "x");
  check_f32(table, 2, "table");
  check_i32(positions, x.dim(0), "positions");
  SHOAL_CHECK(x.dim(2) % 2 == 0 && table.dim(1) == x.dim(2), "x {}, table {}", x.shape_string(),
              table.shape_string());
  for_rows(x.dim(0), 2 * x.dim(1) * x.dim(2), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rope_rows)(x, positions, table, interleaved, begin, end);
  });
}

void CpuOps::write_cache(const Tensor& x, const Tensor& slots, const CacheTensor& cache) {
  check_f32(x, 2, "x");
  check_i32(slots, x.dim(0), "slots");
  check_cache(cache, "cache");
  SHOAL_CHECK(x.dim(1) == cache.dim(), "x {}, cache {}", x.shape_string(), cache.shape_string());
  for_rows(x.dim(0), x.dim(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(write_cache_rows)(x, slots, cache, begin, end);
  });
}

void CpuOps::gather_cache(const CacheTensor& cache, const Tensor& block_table, int32_t page_size,
                          int64_t begin, int64_t end, const Tensor& out) {
  check_f32(out, 2, "out");
  check_i32(block_table, block_table.num_elements(), "block_table");
  check_cache(cache, "cache");
  SHOAL_CHECK(cache.dim() == out.dim(1) && begin >= 0 && out.dim(0) == end - begin &&
                  page_size > 0 && end <= block_table.num_elements() * page_size,
              "cache {}, positions [{}, {}), out {}", cache.shape_string(), begin, end,
              out.shape_string());
  for_rows(out.dim(0), out.dim(1), [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(gather_cache_rows)(cache, block_table, page_size, begin, out, first, last);
  });
}

}  // namespace shoal
#endif  // HWY_ONCE
