// ModelConfig: what config.json says, checked. Fields keep the names of the checkpoint.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/ops.h"
#include "runtime/model/generation_config.h"
#include "runtime/model/quantization_config.h"

namespace shoal {

enum class Architecture { kDeepseekV2, kDeepseekV3, kQwen2, kLlama };

struct RopeScaling {
  enum class Kind { kNone, kYarn, kLlama3, kLinear, kFactors };
  Kind kind = Kind::kNone;
  double factor = 1.0;
  int64_t original_max_position_embeddings = 0;
  // YaRN (Peng et al. 2023), as in DeepSeek's modeling code.
  double beta_fast = 32, beta_slow = 1, mscale = 1, mscale_all_dim = 0;
  std::optional<double> attention_factor;  // Hugging Face's override of the tables' scale
  // Llama 3.
  double low_freq_factor = 1, high_freq_factor = 4;
  // kFactors (Llama 3 in GGUF): what the frequency of each rotated pair is divided by.
  std::vector<float> factors;
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string architecture_name;  // "DeepseekV3ForCausalLM"
  std::string model_type;
  int64_t hidden_size = 0, num_hidden_layers = 0, num_attention_heads = 0, vocab_size = 0;
  int64_t num_key_value_heads = 0, head_dim = 0;  // dense models
  int64_t intermediate_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6, rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // q, k, v (Qwen2: always)

  // MLA and MoE (DeepSeek); zero otherwise.
  int64_t q_lora_rank = 0;  // 0: q_proj directly
  int64_t kv_lora_rank = 0, qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  bool rope_interleave = true;
  int64_t n_routed_experts = 0, n_shared_experts = 0, moe_intermediate_size = 0;
  int64_t first_k_dense_replace = 0, moe_layer_freq = 1;
  int64_t num_nextn_predict_layers = 0;
  RouterSpec router;

  DType torch_dtype = DType::kBF16;
  QuantizationConfig quantization;
  std::vector<int32_t> eos_token_ids;  // config.json, replaced by generation_config.json's when there
  std::optional<int32_t> bos_token_id;

  bool is_mla() const { return kv_lora_rank > 0; }
  bool is_moe_layer(int64_t layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
};

// Reads and checks `dir`/config.json (and generation_config.json). Throws InvalidInput naming file,
// field, value and what would be right. A field that changes the result and is not implemented
// (another hidden_act, attention window, unknown rope type, ...) is refused by name; so is an
// architecture that is not in the list above, and every field that is not known at all.
// `dir` may be a GGUF file: its metadata say the same (runtime/checkpoint/gguf_config.h).
ModelConfig read_model_config(const std::string& dir);
// The same from text, for tests and fuzzing; `source` names it in errors.
ModelConfig parse_model_config(const std::string& json, const std::string& source);

}  // namespace shoal
