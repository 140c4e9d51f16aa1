// Weights from memory to the numbers that a product adds. Eight columns at a time: as pairs of
// bfloat16 in the operand registers of the tensor cores, or as floats. Without scales: those
// multiply sums.
//
// The arithmetic is a few integer operations per pair and one packed bfloat16 operation, all exact:
//   e4m3  sign and the 7 bits below it, moved to where bfloat16 has sign, the low 4 bits of the
//   exponent
//         and the high 3 of the mantissa, are the value * 2^(7 - 127), subnormals too; times 2^120.
//         The NaN codes become +-480.
//   int8  0x43 over the low 7 bits is 128 + them; minus 128, or minus 256 when the sign bit is set.
//   int4  0x43 over the nibble with its sign bit flipped is 128 + 8 + value; minus 136.
//   half  its nearest bfloat16, and what is left (3 bits); float: twice what is left.
#pragma once

#include <cstring>

#include "kernels/base/dtype.h"
#include "kernels/cuda/gpu.h"

namespace shoal::gpu {

struct Int4 {};  // two to a byte, the lower column in the low nibble

// Numbers of W in groups that have a min beside their scale.
template <typename W>
struct Affine {};

template <typename W>
struct WeightType {
  using Number = W;
  static constexpr bool kAffine = false;
  static constexpr int kBits = std::is_same_v<W, Int4> ? 4 : static_cast<int>(sizeof(W)) * 8;
  static constexpr int kWords = kBits / 4;  // registers that hold eight columns
  static constexpr bool kScaled = kBits <= 8;
  // How many bfloat16 add up to a weight.
  static constexpr int kParts = kBits == 32 ? 3 : (std::is_same_v<W, __half> ? 2 : 1);
  static constexpr int64_t bytes(int64_t columns) { return columns * kBits / 8; }
};
template <typename W>
struct WeightType<Affine<W>> : WeightType<W> {
  static constexpr bool kAffine = true;
};

__device__ __forceinline__ float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
__device__ __forceinline__ float low_bf16(uint32_t pair) { return bits_to_float(pair << 16); }
__device__ __forceinline__ float high_bf16(uint32_t pair) {
  return bits_to_float(pair & 0xffff0000u);
}

// Register and pair of bfloat16 or half, both ways.
template <typename Pair>
__device__ __forceinline__ Pair as_pair(uint32_t bits) {
  Pair pair;
  memcpy(static_cast<void*>(&pair), &bits, 4);
  return pair;
}
template <typename Pair>
__device__ __forceinline__ uint32_t as_bits(Pair pair) {
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

__device__ __forceinline__ uint32_t sub_pairs(uint32_t a, uint32_t b) {
  return as_bits(__hsub2(as_pair<__nv_bfloat162>(a), as_pair<__nv_bfloat162>(b)));
}
__device__ __forceinline__ uint32_t mul_pairs(uint32_t a, uint32_t b) {
  return as_bits(__hmul2(as_pair<__nv_bfloat162>(a), as_pair<__nv_bfloat162>(b)));
}

// `high_bytes` holds two codes, each in the upper byte of its half.
__device__ __forceinline__ uint32_t e4m3_pair(uint32_t high_bytes) {
  const uint32_t moved = (high_bytes & 0x80008000u) | ((high_bytes & 0x7f007f00u) >> 4);
  return mul_pairs(moved, 0x7b807b80u);  // 2^120
}
// `low_bytes` holds two codes, each in the lower byte of its half, zeros above.
__device__ __forceinline__ uint32_t int8_pair(uint32_t low_bytes) {
  return sub_pairs((low_bytes & 0x007f007fu) | 0x43004300u,
                   (low_bytes & 0x00800080u) | 0x43004300u);
}

// Splits two floats into pairs of bfloat16 that add up to them.
template <int kParts>
__device__ __forceinline__ void split_pair(float low, float high, uint32_t (&out)[kParts][4],
                                           int at) {
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    const uint32_t pair = pack_bf16(low, high);
    out[p][at] = pair;
    low -= low_bf16(pair);  // exact
    high -= high_bf16(pair);
  }
}

__device__ __forceinline__ void unpack_half(uint32_t pair, float& low, float& high) {
  const auto halves = as_pair<__half2>(pair);
  low = __low2float(halves);
  high = __high2float(halves);
}

// Columns 2i and 2i + 1 go to out[part][i].
template <typename Type>
__device__ __forceinline__ void decode8(const uint32_t (&raw)[WeightType<Type>::kWords],
                                        uint32_t (&out)[WeightType<Type>::kParts][4]) {
  using W = typename WeightType<Type>::Number;
  if constexpr (std::is_same_v<W, float>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      split_pair<3>(bits_to_float(raw[2 * i]), bits_to_float(raw[2 * i + 1]), out, i);
    }
  } else if constexpr (std::is_same_v<W, __half>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float low, high;
      unpack_half(raw[i], low, high);
      split_pair<2>(low, high, out, i);
    }
  } else if constexpr (std::is_same_v<W, bf16>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[0][i] = raw[i];
  } else if constexpr (std::is_same_v<W, e4m3>) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      out[0][2 * i] = e4m3_pair(__byte_perm(raw[i], 0, 0x1404));
      out[0][2 * i + 1] = e4m3_pair(__byte_perm(raw[i], 0, 0x3424));
    }
  } else if constexpr (std::is_same_v<W, int8_t>) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      out[0][2 * i] = int8_pair(__byte_perm(raw[i], 0, 0x4140));
      out[0][2 * i + 1] = int8_pair(__byte_perm(raw[i], 0, 0x4342));
    }
  } else {
    const uint32_t even = (raw[0] & 0x0f0f0f0fu) ^ 0x08080808u;
    const uint32_t odd = ((raw[0] >> 4) & 0x0f0f0f0fu) ^ 0x08080808u;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t nibbles = __byte_perm(even, odd, 0x4400u + 0x1111u * i) & 0x00ff00ffu;
      out[0][i] = sub_pairs(nibbles | 0x43004300u, 0x43084308u);
    }
  }
}

template <typename Type>
__device__ __forceinline__ void decode8(const uint32_t (&raw)[WeightType<Type>::kWords],
                                        float (&out)[8]) {
  using W = typename WeightType<Type>::Number;
  if constexpr (std::is_same_v<W, float>) {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = bits_to_float(raw[i]);
  } else if constexpr (std::is_same_v<W, __half>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack_half(raw[i], out[2 * i], out[2 * i + 1]);
  } else {
    uint32_t pairs[1][4];
    decode8<W>(raw, pairs);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = low_bf16(pairs[0][i]);
      out[2 * i + 1] = high_bf16(pairs[0][i]);
    }
  }
}

// One column, wherever it lies.
template <typename Type>
__device__ __forceinline__ float decode_at(const std::byte* row, int64_t column) {
  using W = typename WeightType<Type>::Number;
  if constexpr (std::is_same_v<W, Int4>) {
    const int byte = static_cast<int>(row[column / 2]);
    const int nibble = (byte >> (column % 2 * 4)) & 15;
    return static_cast<float>((nibble ^ 8) - 8);
  } else if constexpr (std::is_same_v<W, int8_t>) {
    return static_cast<float>(reinterpret_cast<const int8_t*>(row)[column]);
  } else {
    return to_f32(reinterpret_cast<const W*>(row)[column]);
  }
}

// kBytes of a row, streamed. REQUIRES: aligned to min(kBytes, 16).
template <int kBytes>
__device__ __forceinline__ void load_weights(const std::byte* from, uint32_t (&to)[kBytes / 4]) {
  if constexpr (kBytes >= 16) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const uint4 v = load_stream_16(from + 16 * i);
      to[4 * i] = v.x;
      to[4 * i + 1] = v.y;
      to[4 * i + 2] = v.z;
      to[4 * i + 3] = v.w;
    }
  } else if constexpr (kBytes == 8) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    to[0] = v.x;
    to[1] = v.y;
  } else {
    to[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

// Eight bytes. REQUIRES: aligned to 8.
__device__ __forceinline__ void load_8(const void* from, uint32_t& low, uint32_t& high) {
  const uint2 v = *static_cast<const uint2*>(from);
  low = v.x;
  high = v.y;
}

// Calls f with a value of the weight's type: of its elements, or Affine of it.
template <typename F>
void with_weight_type(DType type, bool has_min, const F& f) {
  if (has_min) return type == DType::kI8 ? f(Affine<int8_t>{}) : f(Affine<Int4>{});
  switch (type) {
    case DType::kF32: return f(float{});
    case DType::kF16: return f(__half{});
    case DType::kBF16: return f(bf16{});
    case DType::kF8E4M3: return f(e4m3{});
    case DType::kI8: return f(int8_t{});
    default: return f(Int4{});
  }
}

}  // namespace shoal::gpu
