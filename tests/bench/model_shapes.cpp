#include "tests/bench/model_shapes.h"

#include <nlohmann/json.hpp>

#include "runtime/memory/known_models.h"

namespace shoal::bench {
namespace {

using nlohmann::json;

json published(const char* name) { return json::parse(find_known_model(name)->config); }

// What is left of a model with two layers and no dimension above some dozens.
json shrunk(json config) {
  config.erase("eos_token_id");  // outside the small vocabulary
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
  json slice = published("V3");
  slice["num_hidden_layers"] = 4;
  slice["first_k_dense_replace"] = 1;
  return {{.name = "V2-Lite", .config = parsed("V2-Lite", published("V2-Lite")), .weights = DType::kBF16},
          {.name = "V2-Lite", .config = parsed("V2-Lite", published("V2-Lite")), .weights = DType::kI4x2},
          {.name = "V3, 4 layers, 1 rank of 8",
           .config = parsed("V3", slice),
           .weights = DType::kF8E4M3,
           .layout = {.rank = 0, .size = 8}},
          {.name = "R1-Distill-Qwen-7B",
           .config = parsed("Qwen-7B", published("R1-Distill-Qwen-7B")),
           .weights = DType::kBF16}};
}

}  // namespace shoal::bench
