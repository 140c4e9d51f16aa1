// device_functions.h: CUDA's device functions that touch no other thread: mathematics, bits, atomics,
// cached loads. Exact where the hardware approximates.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// glibc declares these names for itself and does not export them.
#define __expf ::expf
#define __exp10f ::exp10f
#define __logf ::logf
#define __log2f ::log2f
#define __log10f ::log10f
#define __powf ::powf
#define __sinf ::sinf
#define __cosf ::cosf
#define __tanf ::tanf
#define __sincosf ::sincosf

#ifndef __clang__
#define __builtin_assume(condition) ((void)0)
#endif

// CUDA's min and max take mixed types.
template <typename A, typename B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// Conversions saturate, NaN becomes 0.
template <typename T>
T shoal_saturate(double x) {
  if (x != x) return 0;
  // The largest value plus one is a power of two, exact in double where the value itself may not be.
  const double end = 2.0 * static_cast<double>(T(1) << (sizeof(T) * 8 - (std::is_signed_v<T> ? 2 : 1)));
  const double low = std::is_signed_v<T> ? -end : 0.0;
  if (x >= end) return std::numeric_limits<T>::max();
  return x < low ? std::numeric_limits<T>::min() : static_cast<T>(x);
}
inline int __float2int_rn(float x) { return shoal_saturate<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return shoal_saturate<int>(std::trunc(x)); }
inline int __float2int_rd(float x) { return shoal_saturate<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return shoal_saturate<int>(std::ceil(x)); }
inline unsigned __float2uint_rn(float x) { return shoal_saturate<unsigned>(std::nearbyint(x)); }
inline unsigned __float2uint_rz(float x) { return shoal_saturate<unsigned>(std::trunc(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

// ---- Bits ------------------------------------------------------------------------------------------

template <typename To, typename From>
To shoal_bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
inline unsigned __float_as_uint(float x) { return shoal_bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return shoal_bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return shoal_bit_cast<float>(x); }
inline float __int_as_float(int x) { return shoal_bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return shoal_bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return shoal_bit_cast<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (x >> i & 1u) << (31 - i);
  return result;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> (4 * i);
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (pick & 7)) & 0xff);
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, replicated
    result |= byte << (8 * i);
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

// ---- Memory ----------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* p) { return *p; }
template <typename T>
T __ldcs(const T* p) { return *p; }
template <typename T>
T __ldcg(const T* p) { return *p; }
template <typename T>
void __stcs(T* p, std::type_identity_t<T> value) { *p = value; }
template <typename T>
void __stcg(T* p, std::type_identity_t<T> value) { *p = value; }

// Streams are OS threads, so these are the processor's.
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template <typename T, typename Change>
T shoal_atomic_change(T* p, Change change) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Bits));
  auto* bits = reinterpret_cast<Bits*>(p);
  Bits before = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &before,
                                      shoal_bit_cast<Bits>(change(shoal_bit_cast<T>(before))), false,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return shoal_bit_cast<T>(before);
}
template <typename T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  if constexpr (std::is_integral_v<T>) return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
  else return shoal_atomic_change(p, [=](T old) { return old + value; });
}
template <typename T>
T atomicSub(T* p, std::type_identity_t<T> value) {
  return __atomic_fetch_sub(p, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  return shoal_atomic_change(p, [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* p, std::type_identity_t<T> value) {
  return shoal_atomic_change(p, [=](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return shoal_atomic_change(p, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return shoal_atomic_change(p, [=](T old) { return old == expected ? value : old; });
}
template <typename T>
T atomicOr(T* p, std::type_identity_t<T> value) { return __atomic_fetch_or(p, value, __ATOMIC_RELAXED); }
template <typename T>
T atomicAnd(T* p, std::type_identity_t<T> value) { return __atomic_fetch_and(p, value, __ATOMIC_RELAXED); }

inline long long clock64() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}
