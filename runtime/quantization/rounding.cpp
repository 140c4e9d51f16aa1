#include "runtime/quantization/rounding.h"

#include <algorithm>
#include <cmath>

namespace shoal {
namespace {

// Adding and subtracting 1.5 * 2^23 rounds a float below 2^22 to an integer, ties to even, in a form
// that compilers vectorise.
inline float round_even(float x) {
  constexpr float kMagic = 12582912.0f;
  return (x + kMagic) - kMagic;
}

float stored(float scale) { return to_float(to_bf16(scale)); }

float largest_magnitude(std::span<const float> values) {
  float largest = 0;
  for (const float v : values) largest = std::max(largest, std::fabs(v));
  return largest;
}

float squared_error(std::span<const float> values, GroupScale group, float low, float high) {
  const float inverse = 1 / group.scale, zero = static_cast<float>(group.zero);
  float sum = 0;
  for (const float v : values) {
    const float code = std::clamp(round_even(v * inverse) + zero, low, high);
    const float error = (code - zero) * group.scale - v;
    sum += error * error;
  }
  return sum;
}

}  // namespace

GroupScale choose_scale(std::span<const float> values, int bits, bool symmetric) {
  const auto low = static_cast<float>(-(1 << (bits - 1)));
  const float high = -low - 1;
  // Below this nothing can be told from zero.
  constexpr float kTiny = 1e-30f;
  float least = 0, most = 0;  // zero itself stays exact
  for (const float v : values) {
    least = std::min(least, v);
    most = std::max(most, v);
  }
  const float reach = symmetric ? std::max(-least, most) / high : (most - least) / (high - low);
  if (reach < kTiny) return {};
  // With 8 bits a step is so small that clipping gains nothing.
  constexpr float kShrink[] = {1.0f, 0.96f, 0.92f, 0.875f, 0.83f, 0.79f, 0.75f};
  const size_t tries = bits == 4 ? std::size(kShrink) : 1;
  GroupScale best;
  float best_error = INFINITY;
  for (size_t i = 0; i < tries; ++i) {
    GroupScale tried{stored(reach * kShrink[i]), 0};
    if (!symmetric) {
      const float zero = round_even(low - least * kShrink[i] / tried.scale);
      tried.zero = static_cast<int32_t>(std::clamp(zero, low, high));
    }
    const float error = tries == 1 ? 0 : squared_error(values, tried, low, high);
    if (error < best_error) {
      best_error = error;
      best = tried;
    }
  }
  return best;
}

void round_to_codes(std::span<const float> values, GroupScale group, int bits, int8_t* codes) {
  const auto low = static_cast<float>(-(1 << (bits - 1)));
  const float high = -low - 1, inverse = 1 / group.scale;
  const auto zero = static_cast<float>(group.zero);
  for (size_t i = 0; i < values.size(); ++i) {
    codes[i] = static_cast<int8_t>(
        std::clamp(round_even(values[i] * inverse) + zero, low, high));
  }
}

float choose_fp8_scale(const float* values, int64_t stride, int64_t rows, int64_t cols) {
  constexpr float kLargest = 448;
  float largest = 0;
  for (int64_t i = 0; i < rows; ++i) {
    largest = std::max(largest, largest_magnitude({values + i * stride, static_cast<size_t>(cols)}));
  }
  const float scale = largest / kLargest;
  return scale > 1e-30f ? scale : 1;
}

void round_to_fp8(const float* values, int64_t stride, int64_t rows, int64_t cols, float scale,
                  F8E4M3* codes, int64_t code_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      codes[i * code_stride + j] = to_f8e4m3(values[i * stride + j] / scale);
    }
  }
}

}  // namespace shoal
