// Rounding of float values to numbers with scales: to nearest, ties to even. Pure and deterministic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/dtype.h"

namespace shoal {

// One scale (a bfloat16 value: files store it so) and zero point of a group: value = (code - zero) *
// scale.
struct GroupScale {
  float scale = 1;
  int32_t zero = 0;
};

// The scale with which `values`, as codes of `bits` bits, lose least. Four bits try a few scales below
// the one that reaches the largest value, and keep the smallest sum of squared errors.
GroupScale choose_scale(std::span<const float> values, int bits, bool symmetric);

// codes[i] = values[i] / scale + zero, rounded and clamped to `bits` bits, signed.
void round_to_codes(std::span<const float> values, GroupScale group, int bits, int8_t* codes);

// e4m3 with a float32 scale for the whole: largest value / 448, as DeepSeek's files have it. `values`
// and `codes` are rows of the strides given.
float choose_fp8_scale(const float* values, int64_t stride, int64_t rows, int64_t cols);
void round_to_fp8(const float* values, int64_t stride, int64_t rows, int64_t cols, float scale,
                  F8E4M3* codes, int64_t code_stride);

}  // namespace shoal
