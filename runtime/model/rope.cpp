#include "runtime/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace shoal {
namespace {

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// The dimension whose wavelength makes `rotations` turns over the original context.
double yarn_dimension(double rotations, int64_t dim, double base, double original_context) {
  return static_cast<double>(dim) *
         std::log(original_context / (rotations * 2 * std::numbers::pi)) / (2 * std::log(base));
}

void scale_yarn(const RopeScaling& scaling, int64_t dim, double base, std::vector<float>& inv_freq) {
  const auto context = static_cast<double>(scaling.original_max_position_embeddings);
  const double low = std::max(std::floor(yarn_dimension(scaling.beta_fast, dim, base, context)), 0.0);
  double high = std::min(std::ceil(yarn_dimension(scaling.beta_slow, dim, base, context)),
                         static_cast<double>(dim - 1));
  if (low == high) high += 0.001;  // as the paper's code does, against division by zero
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const float ramp = static_cast<float>(
        std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
    const float extrapolated = inv_freq[i];
    const float interpolated = inv_freq[i] / static_cast<float>(scaling.factor);
    inv_freq[i] = interpolated * ramp + extrapolated * (1 - ramp);
  }
}

void scale_llama3(const RopeScaling& scaling, std::vector<float>& inv_freq) {
  const auto context = static_cast<double>(scaling.original_max_position_embeddings);
  const double low_wavelength = context / scaling.low_freq_factor;
  const double high_wavelength = context / scaling.high_freq_factor;
  for (float& f : inv_freq) {
    const double wavelength = 2 * std::numbers::pi / f;
    if (wavelength > low_wavelength) {
      f = static_cast<float>(f / scaling.factor);
    } else if (wavelength >= high_wavelength) {
      const double smooth = (context / wavelength - scaling.low_freq_factor) /
                            (scaling.high_freq_factor - scaling.low_freq_factor);
      f = static_cast<float>((1 - smooth) * f / scaling.factor + smooth * f);
    }
  }
}

float table_scale(const ModelConfig& config) {
  const RopeScaling& s = config.rope_scaling;
  if (s.kind != RopeScaling::Kind::kYarn) return 1.0f;
  if (s.attention_factor) return static_cast<float>(*s.attention_factor);
  return static_cast<float>(yarn_mscale(s.factor, s.mscale) / yarn_mscale(s.factor, s.mscale_all_dim));
}

}  // namespace

std::vector<float> rope_inverse_frequencies(const ModelConfig& config, int64_t dim) {
  std::vector<float> inv_freq(dim / 2);
  for (int64_t i = 0; i < dim / 2; ++i) {
    inv_freq[i] = 1.0f / std::pow(static_cast<float>(config.rope_theta),
                                  static_cast<float>(2 * i) / static_cast<float>(dim));
  }
  switch (config.rope_scaling.kind) {
    case RopeScaling::Kind::kNone: break;
    case RopeScaling::Kind::kLinear:
      for (float& f : inv_freq) f /= static_cast<float>(config.rope_scaling.factor);
      break;
    case RopeScaling::Kind::kYarn:
      scale_yarn(config.rope_scaling, dim, config.rope_theta, inv_freq);
      break;
    case RopeScaling::Kind::kLlama3: scale_llama3(config.rope_scaling, inv_freq); break;
    case RopeScaling::Kind::kFactors:
      for (size_t i = 0; i < inv_freq.size(); ++i) inv_freq[i] /= config.rope_scaling.factors[i];
      break;
  }
  return inv_freq;
}

std::vector<float> rope_table(const ModelConfig& config, int64_t dim, int64_t max_position) {
  const std::vector<float> inv_freq = rope_inverse_frequencies(config, dim);
  const float scale = table_scale(config);
  std::vector<float> table(max_position * dim);
  for (int64_t p = 0; p < max_position; ++p) {
    for (int64_t i = 0; i < dim / 2; ++i) {
      const float angle = static_cast<float>(p) * inv_freq[i];
      table[p * dim + i] = std::cos(angle) * scale;
      table[p * dim + dim / 2 + i] = std::sin(angle) * scale;
    }
  }
  return table;
}

float attention_softmax_scale(const ModelConfig& config) {
  if (!config.is_mla()) return static_cast<float>(1 / std::sqrt(static_cast<double>(config.head_dim)));
  double scale = 1 / std::sqrt(static_cast<double>(config.qk_head_dim()));
  const RopeScaling& s = config.rope_scaling;
  if (s.kind == RopeScaling::Kind::kYarn && s.mscale_all_dim != 0) {
    const double mscale = yarn_mscale(s.factor, s.mscale_all_dim);
    scale *= mscale * mscale;
  }
  return static_cast<float>(scale);
}

}  // namespace shoal
