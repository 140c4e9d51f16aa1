// Element types that tensors hold, and their exact scalar conversions.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace shoal {

// kI4x2: two signed 4-bit integers (-8..7) in a byte, the element of the lower index in the low nibble;
// an "element" of such a tensor is the byte.
enum class DType : uint8_t { kF32, kF16, kBF16, kF8E4M3, kI64, kI32, kI8, kU8, kI4x2 };

int64_t dtype_size(DType dtype);            // bytes
std::string_view dtype_name(DType dtype);   // "float32", "bfloat16", ...

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
// OCP e4m3fn: no infinities, NaN is 0x7f and 0xff, largest finite 448.
struct F8E4M3 {
  uint8_t bits;
};

inline float to_float(BF16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
float to_float(F16 x);
float to_float(F8E4M3 x);

// Round to nearest, ties to even; NaN stays NaN.
inline BF16 to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
F16 to_f16(float x);
F8E4M3 to_f8e4m3(float x);  // saturates at 448

}  // namespace shoal
