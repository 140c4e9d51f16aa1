#include "runtime/memory/known_models.h"

#include <algorithm>
#include <cctype>

namespace shoal {
namespace {

// R1 is V3 trained further: the same config.
constexpr const char* kV3Config =
    R"({"architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "eos_token_id": 1,
        "first_k_dense_replace": 3, "hidden_act": "silu", "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_layer_freq": 1,
        "n_group": 8, "norm_topk_prob": true, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32,
        "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000,
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false,
        "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 128,
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
        "num_attention_heads": 128, "num_key_value_heads": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "quantization_config":
        {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size":
        [128, 128]}})";

// What decides shapes, out of the config.json that each model is published with.
constexpr KnownModel kModels[] = {
    {"deepseek-ai/DeepSeek-V2-Lite",
     R"({"architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false, "eos_token_id":
         100001, "first_k_dense_replace": 1, "hidden_act": "silu", "kv_lora_rank": 512,
         "max_position_embeddings": 163840, "model_type": "deepseek_v2", "moe_layer_freq": 1,
         "n_group": 1, "norm_topk_prob": false, "q_lora_rank": null, "qk_nope_head_dim": 128,
         "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32,
         "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
         "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000,
         "routed_scaling_factor": 1.0, "scoring_func": "softmax", "tie_word_embeddings": false,
         "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16", "v_head_dim": 128,
         "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
         "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
         "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts_per_tok": 6,
         "num_hidden_layers": 27})"},
    {"deepseek-ai/DeepSeek-V2",
     R"({"architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false, "eos_token_id":
         100001, "first_k_dense_replace": 1, "hidden_act": "silu", "kv_lora_rank": 512,
         "max_position_embeddings": 163840, "model_type": "deepseek_v2", "moe_layer_freq": 1,
         "n_group": 8, "norm_topk_prob": false, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
         "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32,
         "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
         "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000,
         "routed_scaling_factor": 16.0, "scoring_func": "softmax", "tie_word_embeddings": false,
         "topk_group": 3, "topk_method": "group_limited_greedy", "torch_dtype": "bfloat16",
         "v_head_dim": 128, "vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288,
         "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 2,
         "num_attention_heads": 128, "num_key_value_heads": 128, "num_experts_per_tok": 6,
         "num_hidden_layers": 60})"},
    {"deepseek-ai/DeepSeek-V3",
     kV3Config},
    {"deepseek-ai/DeepSeek-R1", kV3Config},
    {"deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
     R"({"architectures": ["Qwen2ForCausalLM"], "eos_token_id": 151643, "hidden_act": "silu",
         "hidden_size": 1536, "intermediate_size": 8960, "max_position_embeddings": 131072,
         "model_type": "qwen2", "num_attention_heads": 12, "num_hidden_layers": 28,
         "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 10000, "tie_word_embeddings":
         false, "torch_dtype": "bfloat16", "vocab_size": 151936})"},
    {"deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
     R"({"architectures": ["Qwen2ForCausalLM"], "eos_token_id": 151643, "hidden_act": "silu",
         "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 131072,
         "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
         "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 10000, "tie_word_embeddings":
         false, "torch_dtype": "bfloat16", "vocab_size": 152064})"},
    {"deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
     R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "eos_token_id": 128001,
         "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
         "max_position_embeddings": 131072, "model_type": "llama", "num_attention_heads": 32,
         "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling":
         {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
         "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
         "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 128256})"},
    {"deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
     R"({"architectures": ["Qwen2ForCausalLM"], "eos_token_id": 151643, "hidden_act": "silu",
         "hidden_size": 5120, "intermediate_size": 13824, "max_position_embeddings": 131072,
         "model_type": "qwen2", "num_attention_heads": 40, "num_hidden_layers": 48,
         "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
         "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 152064})"},
    {"deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
     R"({"architectures": ["Qwen2ForCausalLM"], "eos_token_id": 151643, "hidden_act": "silu",
         "hidden_size": 5120, "intermediate_size": 27648, "max_position_embeddings": 131072,
         "model_type": "qwen2", "num_attention_heads": 40, "num_hidden_layers": 64,
         "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
         "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 152064})"},
    {"deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
     R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "eos_token_id": 128001,
         "hidden_act": "silu", "hidden_size": 8192, "intermediate_size": 28672,
         "max_position_embeddings": 131072, "model_type": "llama", "num_attention_heads": 64,
         "num_hidden_layers": 80, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling":
         {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
         "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
         "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 128256})"},
};

// "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "R1-Distill-Qwen-7B" and "qwen-7b" are one model.
std::string short_form(std::string_view name) {
  std::string text(name.substr(name.rfind('/') + 1));
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const std::string_view prefix : {"deepseek-", "r1-distill-"}) {
    if (text.starts_with(prefix)) text.erase(0, prefix.size());
  }
  return text;
}

}  // namespace

std::span<const KnownModel> known_models() { return kModels; }

const KnownModel* find_known_model(std::string_view name) {
  const auto at = std::find_if(std::begin(kModels), std::end(kModels), [&](const KnownModel& model) {
    // Another organisation's model of the same name is another model.
    return (name.find('/') == std::string_view::npos || name.starts_with("deepseek-ai/")) &&
           short_form(model.name) == short_form(name);
  });
  return at == std::end(kModels) ? nullptr : at;
}

std::string_view short_name(const KnownModel& model) {
  const std::string_view name = model.name;
  return name.substr(name.find("/DeepSeek-") + std::string_view("/DeepSeek-").size());
}

}  // namespace shoal
