// Types and tensors. The small floats are checked for every code against their definitions.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/tensor.h"

namespace shoal {
namespace {

// sign, exponent and mantissa of a code, by the definition of the format.
double decode(uint32_t code, int exponent_bits, int mantissa_bits) {
  const uint32_t mantissa = code & ((1u << mantissa_bits) - 1);
  const uint32_t exponent = (code >> mantissa_bits) & ((1u << exponent_bits) - 1);
  const bool negative = (code >> (exponent_bits + mantissa_bits)) & 1;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double fraction = mantissa / std::pow(2.0, mantissa_bits);
  const double value = exponent == 0 ? fraction * std::pow(2.0, 1 - bias)
                                     : (1 + fraction) * std::pow(2.0, int(exponent) - bias);
  return negative ? -value : value;
}

// The finite code nearest to x, ties to the even code: by trying all of them.
uint32_t nearest_code(double x, const std::vector<double>& magnitude_of_code) {
  uint32_t best = 0;
  for (uint32_t c = 1; c < magnitude_of_code.size(); ++c) {
    const double d = std::fabs(magnitude_of_code[c] - std::fabs(x));
    const double best_d = std::fabs(magnitude_of_code[best] - std::fabs(x));
    if (d < best_d || (d == best_d && c % 2 == 0)) best = c;
  }
  return best;
}

}  // namespace

TEST_CASE("bf16: all codes decode by definition and survive a round trip", "[base]") {
  for (uint32_t code = 0; code < 65536; ++code) {
    const float value = to_float(BF16{static_cast<uint16_t>(code)});
    const uint32_t exponent = (code >> 7) & 255, mantissa = code & 127;
    if (exponent == 255 && mantissa != 0) {
      if (!std::isnan(value) || !std::isnan(to_float(to_bf16(value)))) FAIL("NaN code " << code);
      continue;
    }
    if (exponent == 255) {
      if (!std::isinf(value)) FAIL("code " << code);
    } else if (value != decode(code, 8, 7)) {
      FAIL("code " << code << " decodes to " << value);
    }
    if (to_bf16(value).bits != code) FAIL("code " << code << " came back changed");
  }
}

TEST_CASE("bf16: rounds to nearest, ties to even", "[base]") {
  for (uint32_t code = 0; code < 0x7f7f; ++code) {
    const double low = to_float(BF16{static_cast<uint16_t>(code)});
    const double high = to_float(BF16{static_cast<uint16_t>(code + 1)});
    const auto middle = static_cast<float>((low + high) / 2);
    const uint32_t even = code % 2 == 0 ? code : code + 1;
    if (to_bf16(middle).bits != even) FAIL("tie above code " << code);
    if (to_bf16(std::nextafter(middle, 0.0f)).bits != code) FAIL("below the tie of " << code);
    if (to_bf16(std::nextafter(middle, std::numeric_limits<float>::infinity())).bits != code + 1)
      FAIL("above the tie of " << code);
    if (to_bf16(-middle).bits != (even | 0x8000u)) FAIL("negative tie of " << code);
  }
  CHECK(std::isinf(to_float(to_bf16(std::numeric_limits<float>::max()))));
  CHECK(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST_CASE("f16: all codes decode by definition and survive a round trip", "[base]") {
  for (uint32_t code = 0; code < 65536; ++code) {
    const float value = to_float(F16{static_cast<uint16_t>(code)});
    const uint32_t exponent = (code >> 10) & 31, mantissa = code & 1023;
    if (exponent == 31 && mantissa != 0) {
      if (!std::isnan(value) || !std::isnan(to_float(to_f16(value)))) FAIL("NaN code " << code);
      continue;
    }
    if (exponent == 31) {
      if (!std::isinf(value) || std::signbit(value) != (code >> 15)) FAIL("code " << code);
    } else if (value != decode(code, 5, 10)) {
      FAIL("code " << code << " decodes to " << value);
    }
    if (to_f16(value).bits != code) FAIL("code " << code << " came back changed");
  }
}

TEST_CASE("f16: rounds to nearest, ties to even", "[base]") {
  for (uint32_t code = 0; code < 0x7bff; ++code) {
    const float low = to_float(F16{static_cast<uint16_t>(code)});
    const float high = to_float(F16{static_cast<uint16_t>(code + 1)});
    const float middle = (low + high) / 2;  // exact: 12 bits
    const uint32_t even = code % 2 == 0 ? code : code + 1;
    if (to_f16(middle).bits != even) FAIL("tie above code " << code);
    if (to_f16(std::nextafter(middle, 0.0f)).bits != code) FAIL("below the tie of " << code);
    if (to_f16(std::nextafter(middle, 1e9f)).bits != code + 1) FAIL("above the tie of " << code);
    if (to_f16(-middle).bits != (even | 0x8000u)) FAIL("negative tie of " << code);
  }
  CHECK(to_f16(65519.0f).bits == 0x7bff);
  CHECK(to_f16(65520.0f).bits == 0x7c00);
  CHECK(to_f16(-1e30f).bits == 0xfc00);
}

TEST_CASE("f8e4m3: all codes decode by definition and survive a round trip", "[base]") {
  for (uint32_t code = 0; code < 256; ++code) {
    const float value = to_float(F8E4M3{static_cast<uint8_t>(code)});
    if ((code & 0x7f) == 0x7f) {
      CHECK(std::isnan(value));
      CHECK(std::isnan(to_float(to_f8e4m3(value))));
      continue;
    }
    CHECK(value == decode(code, 4, 3));
    CHECK(to_f8e4m3(value).bits == code);
  }
}

TEST_CASE("f8e4m3: encodes to the nearest code and saturates", "[base]") {
  std::vector<double> magnitudes;
  for (uint32_t code = 0; code < 0x7f; ++code) magnitudes.push_back(decode(code, 4, 3));
  for (uint32_t bits = 0; bits < 0x7f800000u; bits += 0x1357u) {
    const float x = std::bit_cast<float>(bits);
    const uint32_t expected = nearest_code(x, magnitudes);
    if (to_f8e4m3(x).bits != expected) FAIL("x = " << x);
    if (to_f8e4m3(-x).bits != (expected | 0x80u)) FAIL("x = " << -x);
  }
  CHECK(to_float(to_f8e4m3(std::numeric_limits<float>::infinity())) == 448.0f);
}

TEST_CASE("tensor: slices, splits and reshapes are views of the same elements", "[base]") {
  std::vector<float> data(2 * 6 * 4);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
  const Tensor t(data.data(), DType::kF32, {2, 6, 4});
  CHECK(t.num_elements() == 48);
  CHECK(t.num_bytes() == 192);
  CHECK(t.contiguous());
  CHECK(t.shape_string() == "float32[2, 6, 4]");

  const Tensor middle = t.slice(1, 2, 5);
  CHECK(middle.shape_string() == "float32[2, 3, 4]");
  CHECK_FALSE(middle.contiguous());
  CHECK(*middle.as<float>() == 8.0f);
  CHECK(middle.row<float>(1)[0] == 32.0f);

  const Tensor heads = t.split_last(2, 2);
  CHECK(heads.shape_string() == "float32[2, 6, 2, 2]");
  CHECK(heads.stride == std::array<int64_t, 4>{24, 4, 2, 1});
  CHECK(heads.slice(2, 1, 2).as<float>()[0] == 2.0f);
  CHECK(middle.split_last(4, 1).stride[1] == 4);

  CHECK(t.reshape({12, 4}).row<float>(11)[3] == 47.0f);
  CHECK(t.slice(0, 1, 1).num_elements() == 0);
  CHECK_THROWS_AS(t.slice(1, 4, 7), Bug);
  CHECK_THROWS_AS(t.slice(3, 0, 0), Bug);
  CHECK_THROWS_AS(t.reshape({5, 5}), Bug);
  CHECK_THROWS_AS(middle.reshape({24}), Bug);
  CHECK_THROWS_AS(t.split_last(3, 2), Bug);
  CHECK_FALSE(Tensor().defined());
}

}  // namespace shoal
