#include "kernels/base/dtype.h"

#include <cmath>

#include "kernels/base/error.h"

namespace shoal {

int64_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kI64: return 8;
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kF16:
    case DType::kBF16: return 2;
    case DType::kF8E4M3:
    case DType::kI8:
    case DType::kU8:
    case DType::kI4x2: return 1;
  }
  SHOAL_CHECK(false, "dtype {}", static_cast<int>(dtype));
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "float32";
    case DType::kF16: return "float16";
    case DType::kBF16: return "bfloat16";
    case DType::kF8E4M3: return "float8_e4m3";
    case DType::kI64: return "int64";
    case DType::kI32: return "int32";
    case DType::kI8: return "int8";
    case DType::kU8: return "uint8";
    case DType::kI4x2: return "int4x2";
  }
  SHOAL_CHECK(false, "dtype {}", static_cast<int>(dtype));
}

namespace {

// Decodes a small float with `mantissa_bits` and exponent bias `bias`; no infinities handled here.
float decode_small(uint32_t sign, uint32_t exponent, uint32_t mantissa, int mantissa_bits, int bias) {
  const float magnitude =
      exponent == 0 ? std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits)
                    : std::ldexp(static_cast<float>(mantissa | (1u << mantissa_bits)),
                                 static_cast<int>(exponent) - bias - mantissa_bits);
  return sign ? -magnitude : magnitude;
}

// Rounds |x| to a multiple of the spacing that a float with these parameters has at |x|, ties to
// even: nearbyint under the default rounding mode does exactly that once scaled.
float round_to_spacing(float magnitude, int mantissa_bits, int min_exponent) {
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude = m * 2^exponent with m in [0.5, 1)
  const int e = std::max(exponent - 1, min_exponent);
  return std::ldexp(std::nearbyint(std::ldexp(magnitude, mantissa_bits - e)), e - mantissa_bits);
}

// Packs a magnitude that is exactly representable.
uint32_t encode_small(float magnitude, int mantissa_bits, int bias) {
  if (magnitude == 0) return 0;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int e = exponent - 1;
  if (e < 1 - bias) {
    return static_cast<uint32_t>(std::ldexp(magnitude, bias - 1 + mantissa_bits));
  }
  const auto full = static_cast<uint32_t>(std::ldexp(magnitude, mantissa_bits - e));
  return (static_cast<uint32_t>(e + bias) << mantissa_bits) | (full & ((1u << mantissa_bits) - 1));
}

}  // namespace

float to_float(F16 x) {
  const uint32_t sign = x.bits >> 15, exponent = (x.bits >> 10) & 31, mantissa = x.bits & 1023;
  if (exponent == 31) {
    return std::bit_cast<float>((sign << 31) | 0x7f800000u | (mantissa << 13));
  }
  return decode_small(sign, exponent, mantissa, 10, 15);
}

float to_float(F8E4M3 x) {
  const uint32_t sign = x.bits >> 7, exponent = (x.bits >> 3) & 15, mantissa = x.bits & 7;
  if (exponent == 15 && mantissa == 7) return std::bit_cast<float>((sign << 31) | 0x7fc00000u);
  return decode_small(sign, exponent, mantissa, 3, 7);
}

F16 to_f16(float x) {
  const uint32_t sign = std::signbit(x) ? 0x8000u : 0;
  if (std::isnan(x)) return {static_cast<uint16_t>(sign | 0x7e00u)};
  const float magnitude = std::isinf(x) ? 65536.0f : round_to_spacing(std::fabs(x), 10, -14);
  if (magnitude > 65504.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
  return {static_cast<uint16_t>(sign | encode_small(magnitude, 10, 15))};
}

F8E4M3 to_f8e4m3(float x) {
  const uint32_t sign = std::signbit(x) ? 0x80u : 0;
  if (std::isnan(x)) return {static_cast<uint8_t>(sign | 0x7fu)};
  const float magnitude =
      std::fabs(x) >= 448.0f ? 448.0f : std::min(round_to_spacing(std::fabs(x), 3, -6), 448.0f);
  return {static_cast<uint8_t>(sign | encode_small(magnitude, 3, 7))};
}

}  // namespace shoal
