#include "runtime/quantization/rounding.h"

#include <algorithm>
#include <cmath>

namespace shoal {
namespace {

// Adding and subtracting 1.5 * 2^23 rounds a float below 2^22 to an integer, ties to even, in a
// form that compilers vectorise.
inline float round_even(float x) {
  constexpr float kMagic = 12582912.0f;
  return (x + kMagic) - kMagic;
}

// Below this nothing can be told from zero.
constexpr float kTiny = 1e-30f;

float stored(float scale) { return to_float(to_bf16(scale)); }

float largest_magnitude(std::span<const float> values) {
  float largest = 0;
  for (const float v : values) largest = std::max(largest, std::fabs(v));
  return largest;
}

// The codes of a signed number of so many bits.
struct Codes {
  explicit Codes(int bits) : low(static_cast<float>(-(1 << (bits - 1)))), high(-low - 1) {}
  float code(float value, GroupScale group, float inverse) const {
    return std::clamp(round_even((value - group.min) * inverse), low, high);
  }
  float low, high;
};

// A group and what its errors weigh.
struct Group {
  std::span<const float> values, importance;

  float squared_error(GroupScale tried, const Codes& codes) const {
    const float inverse = 1 / tried.scale;
    float sum = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const float error =
          codes.code(values[i], tried, inverse) * tried.scale + tried.min - values[i];
      sum += importance.empty() ? error * error : error * error * importance[i];
    }
    return sum;
  }

  // The line through values over codes: with these codes, no scale and min have a smaller error.
  GroupScale fitted(GroupScale group, const Codes& codes) const {
    const float inverse = 1 / group.scale;
    double w = 0, c = 0, v = 0, cc = 0, cv = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const double weight = importance.empty() ? 1 : importance[i];
      const double code = codes.code(values[i], group, inverse);
      w += weight;
      c += weight * code;
      v += weight * values[i];
      cc += weight * code * code;
      cv += weight * code * values[i];
    }
    const double determinant = w * cc - c * c;
    if (!(determinant > 1e-12 * w * cc)) return group;
    const double scale = (w * cv - c * v) / determinant;
    const auto min = static_cast<float>((v - scale * c) / w);
    return scale > kTiny ? GroupScale{static_cast<float>(scale), min} : group;
  }
};

}  // namespace

GroupScale choose_scale(std::span<const float> values, int bits, ZeroPoint zero,
                        std::span<const float> importance) {
  const Codes codes(bits);
  const Group group{values, importance};
  const bool keep_zero = zero != ZeroPoint::kFree;  // 0.0 itself stays exact
  float least = keep_zero || values.empty() ? 0 : values[0], most = least;
  for (const float v : values) {
    least = std::min(least, v);
    most = std::max(most, v);
  }
  const float reach = zero == ZeroPoint::kNone ? std::max(-least, most) / codes.high
                                               : (most - least) / (codes.high - codes.low);
  if (reach < kTiny) return {1, keep_zero ? 0 : least};
  // With 8 bits a step is so small that clipping gains nothing.
  constexpr float kShrink[] = {1.0f, 0.96f, 0.92f, 0.875f, 0.83f, 0.79f, 0.75f};
  const size_t tries = bits == 4 ? std::size(kShrink) : 1;
  GroupScale best;
  float best_error = INFINITY;
  const auto try_one = [&](GroupScale tried) {
    const float error = group.squared_error(tried, codes);
    if (!(error < best_error)) return false;
    best_error = error;
    best = tried;
    return true;
  };
  for (size_t i = 0; i < tries; ++i) {
    GroupScale tried{reach * kShrink[i], 0};
    if (keep_zero) tried.scale = stored(tried.scale);
    if (zero == ZeroPoint::kInteger) {
      const float code = round_even(codes.low - least * kShrink[i] / tried.scale);
      tried.min = -std::clamp(code, codes.low, codes.high) * tried.scale;
    } else if (zero == ZeroPoint::kFree) {
      // What is clipped is clipped on both sides alike.
      const float middle = least + (most - least) / 2;
      tried.min = middle - tried.scale * (codes.high + codes.low) / 2;
    }
    if (tries == 1) return tried;
    try_one(tried);
  }
  constexpr int kFits = 3;
  for (int i = 0; zero == ZeroPoint::kFree && i < kFits; ++i) {
    if (!try_one(group.fitted(best, codes))) break;
  }
  return best;
}

void round_to_codes(std::span<const float> values, GroupScale group, int bits, int8_t* codes) {
  const Codes all(bits);
  const float inverse = 1 / group.scale;
  for (size_t i = 0; i < values.size(); ++i) {
    codes[i] = static_cast<int8_t>(all.code(values[i], group, inverse));
  }
}

float choose_fp8_scale(const float* values, int64_t stride, int64_t rows, int64_t cols) {
  constexpr float kLargest = 448;
  float largest = 0;
  for (int64_t i = 0; i < rows; ++i) {
    largest =
        std::max(largest, largest_magnitude({values + i * stride, static_cast<size_t>(cols)}));
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
