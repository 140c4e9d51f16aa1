// Rounding of float values to numbers with scales: to nearest, ties to even. Pure and
// deterministic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/dtype.h"

namespace shoal {

// How a group's numbers lie: value = code * scale + min.
struct GroupScale {
  float scale = 1;
  float min = 0;
};

// Where the codes' zero may be.
enum class ZeroPoint {
  kNone,     // min is 0
  kInteger,  // a code of 0.0: min = -zero * scale, zero an integer that fits the codes, as files
             // store it
  kFree,     // anywhere
};

// The scale (and min) with which `values`, as codes of `bits` bits, lose least: the smallest sum of
// squared errors, each weighed by its `importance` (one for each value; empty: all alike). Eight
// bits take the scale that reaches the largest value; four try some below it. With kNone and
// kInteger scales are bfloat16 numbers, as files store them; kFree fits scale and min to the codes,
// and finds the grid that values lie on already.
GroupScale choose_scale(std::span<const float> values, int bits, ZeroPoint zero,
                        std::span<const float> importance = {});

// codes[i] = (values[i] - min) / scale, rounded and clamped to `bits` bits, signed.
void round_to_codes(std::span<const float> values, GroupScale group, int bits, int8_t* codes);

// e4m3 with a float32 scale for the whole: largest value / 448, as DeepSeek's files have it.
// `values` and `codes` are rows of the strides given.
float choose_fp8_scale(const float* values, int64_t stride, int64_t rows, int64_t cols);
void round_to_fp8(const float* values, int64_t stride, int64_t rows, int64_t cols, float scale,
                  F8E4M3* codes, int64_t code_stride);

}  // namespace shoal
