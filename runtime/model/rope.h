// Rotary position embedding: the tables, with the scalings that change them, and the softmax scale
// that YaRN changes with them.
#pragma once

#include <vector>

#include "runtime/model/model_config.h"

namespace shoal {

// Angles per position of each rotated pair: [dim / 2] inverse frequencies, float32 as Hugging Face
// computes them. YaRN: Peng et al. 2023 (arXiv 2309.00071), 3.2, as in DeepSeek's modeling code;
// Llama 3: the frequency-dependent scaling of Llama 3.1.
std::vector<float> rope_inverse_frequencies(const ModelConfig& config, int64_t dim);

// [max_position, dim] in the layout of Ops::rope: cosines then sines of a row, times the table's scale.
std::vector<float> rope_table(const ModelConfig& config, int64_t dim, int64_t max_position);

// 1 / sqrt(head_dim), for DeepSeek's YaRN times mscale(factor, mscale_all_dim)^2.
float attention_softmax_scale(const ModelConfig& config);

}  // namespace shoal
