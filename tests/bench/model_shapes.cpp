#include "tests/bench/model_shapes.h"

#include <nlohmann/json.hpp>

namespace shoal::bench {
namespace {

using nlohmann::json;

json v2_lite() {
  return json::parse(R"({
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "hidden_size": 2048, "num_hidden_layers": 27, "vocab_size": 102400,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "n_group": 1, "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax",
    "norm_topk_prob": false, "routed_scaling_factor": 1.0,
    "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": null, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "attention_bias": false,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "max_position_embeddings": 163840, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
      "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096}})");
}

json v3() {
  json config = v2_lite();
  config.update(json::parse(R"({
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "hidden_size": 7168, "num_hidden_layers": 61, "vocab_size": 129280,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    "norm_topk_prob": true, "routed_scaling_factor": 2.5,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
      "weight_block_size": [128, 128]}})"));
  config["rope_scaling"]["mscale"] = config["rope_scaling"]["mscale_all_dim"] = 1.0;
  return config;
}

json qwen_7b() {
  return json::parse(R"({
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
    "hidden_size": 3584, "num_hidden_layers": 28, "vocab_size": 152064,
    "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "max_position_embeddings": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16"})");
}

// What is left of a model with two layers and no dimension above some dozens.
json shrunk(json config) {
  config.update(json::parse(R"({"hidden_size": 160, "num_hidden_layers": 2, "vocab_size": 96,
    "intermediate_size": 192, "num_attention_heads": 8})"));
  config["num_key_value_heads"] = config.contains("kv_lora_rank") ? 8 : 2;
  if (!config.contains("kv_lora_rank")) return config;
  config.update(json::parse(R"({"moe_intermediate_size": 64, "first_k_dense_replace": 1,
    "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32})"));
  if (!config["q_lora_rank"].is_null()) config["q_lora_rank"] = 96;
  config["n_routed_experts"] = config["n_group"] > 1 ? 32 : 8;
  return config;
}

}  // namespace

std::vector<ModelCase> model_cases(bool tiny) {
  const auto parsed = [&](const std::string& name, const json& config) {
    return parse_model_config((tiny ? shrunk(config) : config).dump(), name);
  };
  // Enough layers for the shares of a layer to settle: one dense one as the model has three, and
  // three of its mixtures of experts.
  json slice = v3();
  slice["num_hidden_layers"] = 4;
  slice["first_k_dense_replace"] = 1;
  return {{.name = "V2-Lite", .config = parsed("V2-Lite", v2_lite()), .weights = DType::kBF16},
          {.name = "V2-Lite", .config = parsed("V2-Lite", v2_lite()), .weights = DType::kI4x2},
          {.name = "V3, 4 layers, 1 rank of 8",
           .config = parsed("V3", slice),
           .weights = DType::kF8E4M3,
           .layout = {.rank = 0, .size = 8}},
          {.name = "R1-Distill-Qwen-7B",
           .config = parsed("Qwen-7B", qwen_7b()),
           .weights = DType::kBF16}};
}

}  // namespace shoal::bench
