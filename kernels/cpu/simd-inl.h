// Vectors of floats: loads that decode the stored types, tails, exp. Included once per SIMD target.
// No load reads past the elements that it is given, so tails are safe under a sanitizer.
#if defined(SHOAL_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SHOAL_KERNELS_CPU_SIMD_INL_H_
#undef SHOAL_KERNELS_CPU_SIMD_INL_H_
#else
#define SHOAL_KERNELS_CPU_SIMD_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/base/dtype.h"

#ifndef SHOAL_KERNELS_CPU_SIMD_ONCE_
#define SHOAL_KERNELS_CPU_SIMD_ONCE_
namespace shoal {

// Stored integers as types of their own: what is loaded, not what is computed with.
struct I8 {
  int8_t value;
};
struct I4x2 {  // the lower column in the low nibble
  uint8_t bits;
};

}  // namespace shoal
#endif

// Register tiles are arrays of vectors: they live in registers only if every loop over them is
// gone.
#if defined(__clang__)
#define SHOAL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SHOAL_UNROLL _Pragma("GCC unroll 16")
#endif

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
using DU = hn::RebindToUnsigned<DF>;
using DU16 = hn::Rebind<uint16_t, DF>;
using DI8 = hn::Rebind<int8_t, DF>;
using DI32 = hn::RebindToSigned<DF>;

inline constexpr int64_t kLanes = static_cast<int64_t>(HWY_LANES(float));
// Vector registers: 32 with AVX-512 and on ARM, 16 with AVX2.
inline constexpr bool kManyRegisters = HWY_TARGET != HWY_AVX2;

HWY_INLINE VF bf16_bits_to_float(hn::Vec<DU16> bits) {
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), bits)));
}

// An e4m3 code moved into the fields of a half (sign, 4 low exponent bits, 3 high mantissa bits) is
// the value / 2^8, because the exponent biases are 7 and 15; this holds for subnormals too. The NaN
// codes come out as +-480. Extending the sign puts it where bit 15 will be, and once more into
// bit 14.
HWY_INLINE VF f8_over_256(hn::Vec<DI8> codes) {
  const hn::RebindToSigned<DU16> d16;
  const auto moved = hn::ShiftLeft<7>(hn::PromoteTo(d16, codes));
  const auto half = hn::And(moved, hn::Set(d16, static_cast<int16_t>(0xBFFF)));
  return hn::PromoteTo(DF(), hn::BitCast(hn::Rebind<hwy::float16_t, DF>(), half));
}

#if HWY_TARGET != HWY_SCALAR
// Two vectors of codes for the price of one and a half.
HWY_INLINE void f8_over_256_twice(const F8E4M3* p, VF& first, VF& second) {
  const hn::ScalableTag<int16_t> d16;
  const hn::Half<decltype(d16)> half16;
  const hn::Rebind<int8_t, decltype(d16)> d8;
  const auto codes = hn::LoadU(d8, reinterpret_cast<const int8_t*>(p));
  const auto half = hn::And(hn::ShiftLeft<7>(hn::PromoteTo(d16, codes)),
                            hn::Set(d16, static_cast<int16_t>(0xBFFF)));
  const hn::Rebind<hwy::float16_t, DF> df16;
  first = hn::PromoteTo(DF(), hn::BitCast(df16, hn::LowerHalf(half16, half)));
  second = hn::PromoteTo(DF(), hn::BitCast(df16, hn::UpperHalf(half16, half)));
}
#endif

HWY_INLINE VF int8_to_float(hn::Vec<DI8> v) {
  return hn::ConvertTo(DF(), hn::PromoteTo(DI32(), v));
}

#if HWY_TARGET != HWY_SCALAR
// The numbers of as many bytes as D8 has pairs of lanes, in their order. A byte b, widened to 16
// bits, becomes b | b << 4: its nibbles are then the low ones of the two halves. Flipping the sign
// bit and taking 8 away extends the sign.
template <class D8>
HWY_INLINE hn::Vec<D8> nibbles(D8 d8, const I4x2* p) {
  const hn::RepartitionToWide<hn::RebindToUnsigned<D8>> d16;
  const auto bytes = hn::PromoteTo(
      d16, hn::LoadU(hn::Rebind<uint8_t, decltype(d16)>(), reinterpret_cast<const uint8_t*>(p)));
  const auto apart =
      hn::And(hn::Or(bytes, hn::ShiftLeft<4>(bytes)), hn::Set(d16, uint16_t{0x0f0f}));
  const auto eight = hn::Set(d8, int8_t{8});
  return hn::Sub(hn::Xor(hn::BitCast(d8, apart), eight), eight);
}

// kLanes numbers from kLanes / 2 bytes.
HWY_INLINE VF load(const I4x2* p) { return int8_to_float(nibbles(DI8(), p)); }

// Two vectors of numbers: the widening of nibbles is shared.
HWY_INLINE void load_twice(const I4x2* p, VF& first, VF& second) {
  const hn::Twice<DI8> d8;
  const auto both = nibbles(d8, p);
  first = int8_to_float(hn::LowerHalf(DI8(), both));
  second = int8_to_float(hn::UpperHalf(DI8(), both));
}
#endif

HWY_INLINE VF load(const float* p) { return hn::LoadU(DF(), p); }
HWY_INLINE VF load(const BF16* p) {
  return bf16_bits_to_float(hn::LoadU(DU16(), reinterpret_cast<const uint16_t*>(p)));
}
HWY_INLINE VF load(const F16* p) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128  // PromoteTo knows no infinity or NaN
  float floats[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) floats[i] = to_float(p[i]);
  return load(floats);
#endif
  return hn::PromoteTo(DF(), hn::LoadU(hn::Rebind<hwy::float16_t, DF>(),
                                       reinterpret_cast<const hwy::float16_t*>(p)));
}
HWY_INLINE VF load(const F8E4M3* p) {
  return f8_over_256(hn::LoadU(DI8(), reinterpret_cast<const int8_t*>(p)));
}

HWY_INLINE VF load(const I8* p) {
  return int8_to_float(hn::LoadU(DI8(), reinterpret_cast<const int8_t*>(p)));
}

// The first n < kLanes elements, the other lanes zero.
template <typename T>
HWY_INLINE VF load_n(const T* p, int64_t n) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  if constexpr (sizeof(T) == 4) return hn::MaskedLoad(hn::FirstN(DF(), n), DF(), p);
#endif
  alignas(64) T padded[HWY_MAX_BYTES / 4] = {};
  std::memcpy(padded, p, static_cast<size_t>(n) * sizeof(T));
  return load(padded);
}

#if HWY_TARGET != HWY_SCALAR
HWY_INLINE VF load_n(const I4x2* p, int64_t n) {
  I4x2 padded[HWY_MAX_BYTES / 8] = {};
  std::memcpy(padded, p, static_cast<size_t>(n + 1) / 2);
  return load(padded);
}
#endif

HWY_INLINE void store(VF v, float* p) { hn::StoreU(v, DF(), p); }

// Round to nearest even as to_bf16(); a NaN keeps its upper bits and becomes quiet.
HWY_INLINE void store(VF v, BF16* p) {
  const DU du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));
  const auto is_nan = hn::RebindMask(du, hn::IsNaN(v));
  const auto upper = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, rounded));
  hn::StoreU(hn::DemoteTo(DU16(), hn::BitCast(hn::RebindToSigned<DU>(), upper)), DU16(),
             reinterpret_cast<uint16_t*>(p));
}

// |v| <= 448 and a rounding more, to the nearest e4m3, ties to even. From 2^-6 on the three upper bits
// of the mantissa stay and the exponent's bias becomes 7; below it the codes are multiples of 2^-9, and
// so are the floats from 2^14 on.
HWY_INLINE void store(VF v, F8E4M3* p) {
  const DU du;
  const auto bits = hn::BitCast(du, hn::Abs(v));
  const auto odd = hn::And(hn::ShiftRight<20>(bits), hn::Set(du, 1u));
  const auto rounded =
      hn::ShiftRight<20>(hn::Add(bits, hn::Add(odd, hn::Set(du, (1u << 19) - 1u))));
  const auto normal = hn::Sub(rounded, hn::Set(du, (127u - 7u) << 3));
  const VF unit = hn::Set(DF(), 16384.0f);
  const auto subnormal = hn::Sub(hn::BitCast(du, hn::Add(hn::Abs(v), unit)), hn::BitCast(du, unit));
  const auto small = hn::RebindMask(du, hn::Lt(hn::Abs(v), hn::Set(DF(), 0x1p-6f)));
  const auto sign = hn::And(hn::ShiftRight<24>(hn::BitCast(du, v)), hn::Set(du, 0x80u));
  const auto code = hn::Or(hn::IfThenElse(small, subnormal, normal), sign);
  hn::StoreU(hn::DemoteTo(hn::Rebind<uint8_t, DF>(), hn::BitCast(DI32(), code)),
             hn::Rebind<uint8_t, DF>(), reinterpret_cast<uint8_t*>(p));
}

HWY_INLINE void store(VF v, I8* p) {
  hn::StoreU(hn::DemoteTo(DI8(), hn::NearestInt(v)), DI8(), reinterpret_cast<int8_t*>(p));
}

template <typename T>
HWY_INLINE void store_n(VF v, T* p, int64_t n) {
  alignas(64) T padded[HWY_MAX_BYTES / 4];
  store(v, padded);
  std::memcpy(p, padded, static_cast<size_t>(n) * sizeof(T));
}

// body(offset, load, store) style loops are written out where they are used; this is the common
// one: calls full(i) for whole vectors of [0, n) and tail(i, count) once for what is left.
template <typename Full, typename Tail>
HWY_INLINE void for_vectors(int64_t n, const Full& full, const Tail& tail) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) full(i);
  if (i < n) tail(i, n - i);
}

HWY_INLINE float sum_lanes(VF v) { return hn::GetLane(hn::SumOfLanes(DF(), v)); }

// exp(x), within 2 units in the last place; 0 for x < -87.3 (denormal results are not made), inf
// above 88.7, NaN stays. exp(0) is exactly 1.
HWY_INLINE VF exp_f32(VF x) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  // Past these the result is replaced; NaN passes through Min and Max as the second operand or is
  // put back at the end.
  const VF clamped = hn::Min(hn::Max(x, hn::Set(d, -87.5f)), hn::Set(d, 88.8f));
  // x = n ln 2 + r with |r| <= ln(2) / 2; ln 2 is split so that n * high is exact (Cody and Waite).
  const auto n = hn::NearestInt(hn::Mul(clamped, hn::Set(d, 1.44269504088896341f)));
  const VF nf = hn::ConvertTo(d, n);
  VF r = hn::NegMulAdd(nf, hn::Set(d, 0.693359375f), clamped);
  r = hn::NegMulAdd(nf, hn::Set(d, -2.12194440e-4f), r);
  // exp(r) = 1 + r + r^2 p(r): the Taylor coefficients 1/2! .. 1/7! leave 2^-27 at |r| = 0.35.
  VF p = hn::Set(d, 1.9841270e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3888889e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3333333e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1666667e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666667e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(p, hn::Mul(r, r), r);
  p = hn::Add(p, hn::Set(d, 1.0f));
  // Times 2^n in two factors: n reaches 128, where 2^n itself is not finite.
  const auto half = hn::ShiftRight<1>(n);
  const auto bias = hn::Set(di, 127);
  const auto pow2 = [&](hn::Vec<hn::RebindToSigned<DF>> e)
                        HWY_ATTR { return hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(e, bias))); };
  p = hn::Mul(hn::Mul(p, pow2(half)), pow2(hn::Sub(n, half)));
  p = hn::IfThenElse(hn::Lt(x, hn::Set(d, -87.3f)), hn::Zero(d), p);
  return hn::IfThenElse(hn::IsNaN(x), x, p);
}

// 1 / (1 + exp(-x))
HWY_INLINE VF sigmoid(VF x) {
  const VF one = hn::Set(DF(), 1.0f);
  return hn::Div(one, hn::Add(one, exp_f32(hn::Neg(x))));
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#endif
