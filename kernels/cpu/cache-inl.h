// Rows of a paged KV cache as floats, included once per SIMD target. Every reader of the cache decodes
// through here, so that prefill (which gathers) and decode see the same numbers.
#if defined(SHOAL_KERNELS_CPU_CACHE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SHOAL_KERNELS_CPU_CACHE_INL_H_
#undef SHOAL_KERNELS_CPU_CACHE_INL_H_
#else
#define SHOAL_KERNELS_CPU_CACHE_INL_H_
#endif

#include "kernels/base/cache_tensor.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

template <typename From, typename To>
HWY_INLINE void convert(const From* from, int64_t n, To* to) {
  for_vectors(
      n, [&](int64_t i) HWY_ATTR { store(load(from + i), to + i); },
      [&](int64_t i, int64_t left) HWY_ATTR { store_n(load_n(from + i, left), to + i, left); });
}

// to[i] = load(from + i) * factor, rounded once.
template <typename From>
HWY_INLINE void scale_to_floats(const From* from, int64_t n, float factor, float* to) {
  const VF f = hn::Set(DF(), factor);
  for_vectors(
      n, [&](int64_t i) HWY_ATTR { store(hn::Mul(load(from + i), f), to + i); },
      [&](int64_t i, int64_t left)
          HWY_ATTR { store_n(hn::Mul(load_n(from + i, left), f), to + i, left); });
}

// Columns [column, column + n) of the data of a slot, which belong to one group if there are scales.
HWY_INLINE void decode_cache(const CacheTensor& cache, int64_t slot, int64_t column, int64_t n,
                             float* to) {
  const Tensor& data = cache.data;
  const auto scale = [&] {
    return cache.scale.row<const float>(slot)[column / (data.dim(1) / cache.groups())];
  };
  switch (data.dtype) {
    case DType::kF32: return convert(data.row<const float>(slot) + column, n, to);
    case DType::kBF16: return convert(data.row<const BF16>(slot) + column, n, to);
    case DType::kI8:
      return scale_to_floats(data.row<const I8>(slot) + column, n, scale(), to);
    default:  // load() gives a 256th of an e4m3
      return scale_to_floats(data.row<const F8E4M3>(slot) + column, n, 256.0f * scale(), to);
  }
}

// The whole row: [cache.dim()].
HWY_INLINE void decode_cache_row(const CacheTensor& cache, int64_t slot, float* to) {
  const int64_t n = cache.data.dim(1), groups = cache.quantised() ? cache.groups() : 1;
  const int64_t group = n / groups;
  for (int64_t g = 0; g < groups; ++g) decode_cache(cache, slot, g * group, group, to + g * group);
  if (cache.rope.defined()) convert(cache.rope.row<const BF16>(slot), cache.rope.dim(1), to + n);
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#endif
