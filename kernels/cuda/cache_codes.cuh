// Numbers of a quantised KV cache, e4m3 or int8, without their scales: those multiply what the numbers
// are used for. bfloat16 holds every code exactly, so tensor cores round nothing more than with a
// bfloat16 cache.
#pragma once

#include "kernels/cuda/weight_decode.cuh"

namespace shoal::gpu {

template <typename T>
constexpr bool kIsCode = std::is_same_v<T, e4m3> || std::is_same_v<T, int8_t>;

// An element of any cache as it is stored.
template <typename T>
__device__ __forceinline__ float stored_number(T x) {
  if constexpr (std::is_same_v<T, int8_t>) {
    return static_cast<float>(x);
  } else {
    return to_f32(x);
  }
}

// Sixteen codes to sixteen bfloat16, both 16-byte aligned.
template <typename Code>
__device__ __forceinline__ void decode_16(const void* codes, bf16* to) {
  const uint4 raw = load_16(codes);
  const uint32_t halves[2][2] = {{raw.x, raw.y}, {raw.z, raw.w}};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t pairs[1][4];
    decode8<Code>(halves[i], pairs);
    store_16(to + 8 * i, make_uint4(pairs[0][0], pairs[0][1], pairs[0][2], pairs[0][3]));
  }
}

// body(an element of the cache's C++ type); the caller has checked that it is one.
template <typename Body>
void with_cache_type(DType type, const Body& body) {
  switch (type) {
    case DType::kF32: return body(float{});
    case DType::kBF16: return body(bf16{});
    case DType::kF8E4M3: return body(e4m3{});
    default: return body(int8_t{});
  }
}

}  // namespace shoal::gpu
