// config.json of every supported model, and every kind of field that has to be refused by name.
#include "runtime/model/model_config.h"

#include <nlohmann/json.hpp>

#include "runtime/checkpoint/strict_json.h"
#include "runtime/checkpoint/tensor_plan.h"
#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"

namespace shoal {
namespace {

using Json = nlohmann::json;

Json fixture(const std::string& name) {
  return Json::parse(read_small_file(
      SHOAL_SOURCE_DIR "/tests/runtime/checkpoint/configs/" + name + ".json", 1 << 20));
}

ModelConfig parse(const Json& json) { return parse_model_config(json.dump(), "config.json"); }

// The fixture with some fields changed; null removes nothing, as in Hugging Face's files.
ModelConfig parse_with(const std::string& name, const Json& changes) {
  Json json = fixture(name);
  json.update(changes);
  return parse(json);
}

Json without(const std::string& name, const std::string& field) {
  Json json = fixture(name);
  REQUIRE(json.erase(field) == 1);
  return json;
}

// Parameters of the main model, and those that a token meets: its own experts, no embedding table
// twice.
std::pair<double, double> billions(const ModelConfig& config) {
  double total = 0, active = 0;
  for (const PlannedTensor& t : tensor_plan(config)) {
    if (t.kind == TensorKind::kMtp) continue;
    const double size = static_cast<double>(t.n) * static_cast<double>(std::max<int64_t>(t.k, 1));
    total += size;
    active += t.kind == TensorKind::kRoutedExperts
                  ? size * config.router.top_k / config.n_routed_experts
                  : size;
  }
  return {total / 1e9, active / 1e9};
}

TEST_CASE("DeepSeek-V2-Lite") {
  const ModelConfig c = parse(fixture("deepseek-v2-lite"));
  CHECK(c.architecture == Architecture::kDeepseekV2);
  CHECK(c.is_mla());
  CHECK(c.q_lora_rank == 0);
  CHECK(c.kv_lora_rank == 512);
  CHECK(c.qk_head_dim() == 192);
  CHECK(c.router.kind == RouterKind::kGreedySoftmax);
  CHECK(c.router.top_k == 6);
  CHECK_FALSE(c.router.norm_topk_prob);
  CHECK(c.router.routed_scaling_factor == 1.0f);
  CHECK(c.rope_scaling.kind == RopeScaling::Kind::kYarn);
  CHECK(c.rope_scaling.factor == 40);
  CHECK(c.rope_scaling.mscale == 0.707);
  CHECK(c.rope_scaling.mscale_all_dim == 0.707);
  CHECK(c.rope_scaling.original_max_position_embeddings == 4096);
  CHECK(c.eos_token_ids == std::vector<int32_t>{100001});
  CHECK(c.bos_token_id == 100000);
  CHECK_FALSE(c.is_moe_layer(0));
  CHECK(c.is_moe_layer(1));
  CHECK(billions(c).first == Approx(15.7).epsilon(0.003));
}

TEST_CASE("DeepSeek-V2") {
  const ModelConfig c = parse(fixture("deepseek-v2"));
  CHECK(c.router.kind == RouterKind::kGroupLimitedSoftmax);
  CHECK(c.router.n_group == 8);
  CHECK(c.router.topk_group == 3);
  CHECK(c.router.routed_scaling_factor == 16.0f);
  CHECK(c.q_lora_rank == 1536);
  CHECK(billions(c).first == Approx(235.7).epsilon(0.001));
}

TEST_CASE("DeepSeek-V3 and R1") {
  for (const char* name : {"deepseek-v3", "deepseek-r1"}) {
    const ModelConfig c = parse(fixture(name));
    CHECK(c.architecture == Architecture::kDeepseekV3);
    CHECK(c.router.kind == RouterKind::kNoauxTcSigmoid);
    CHECK(c.router.top_k == 8);
    CHECK(c.router.topk_group == 4);
    CHECK(c.router.norm_topk_prob);
    CHECK(c.router.routed_scaling_factor == 2.5f);
    CHECK(c.num_nextn_predict_layers == 1);
    CHECK(c.first_k_dense_replace == 3);
    CHECK(c.quantization.method == QuantizationMethod::kFp8);
    CHECK(c.quantization.block_rows == 128);
    CHECK(c.quantization.block_cols == 128);
    CHECK(c.rope_interleave);
    CHECK(billions(c).first == Approx(671.0).epsilon(0.0005));
    CHECK(billions(c).second == Approx(36.6 + 0.93).epsilon(0.005));  // 36.6 without the embedding
  }
}

TEST_CASE("the distills") {
  struct Row {
    const char* name;
    double gigabytes;  // BF16
  };
  for (const Row& row :
       {Row{"r1-distill-qwen-1.5b", 3.55}, Row{"r1-distill-qwen-7b", 15.2},
        Row{"r1-distill-qwen-14b", 29.5}, Row{"r1-distill-qwen-32b", 65.5},
        Row{"r1-distill-llama-8b", 16.1}, Row{"r1-distill-llama-70b", 141.1}}) {
    INFO(row.name);
    const ModelConfig c = parse(fixture(row.name));
    const bool qwen = c.architecture == Architecture::kQwen2;
    CHECK(c.head_dim == 128);
    CHECK(c.attention_bias == qwen);
    CHECK_FALSE(c.is_mla());
    CHECK_FALSE(c.is_moe_layer(5));
    CHECK(c.rope_scaling.kind == (qwen ? RopeScaling::Kind::kNone : RopeScaling::Kind::kLlama3));
    CHECK(2 * billions(c).first == Approx(row.gigabytes).epsilon(0.005));
  }
  const ModelConfig llama = parse(fixture("r1-distill-llama-8b"));
  CHECK(llama.rope_theta == 500000);
  CHECK(llama.rope_scaling.factor == 8);
  CHECK(llama.rope_scaling.low_freq_factor == 1);
  CHECK(llama.rope_scaling.high_freq_factor == 4);
  CHECK(llama.rope_scaling.original_max_position_embeddings == 8192);
}

TEST_CASE("what transformers 5 writes means the same") {
  for (const auto& [newer, older] :
       std::map<std::string, std::string>{{"newer-v2", "deepseek-v2"},
                                          {"newer-v3", "deepseek-v3"},
                                          {"newer-qwen2", "r1-distill-qwen-1.5b"},
                                          {"newer-llama", "r1-distill-llama-8b"}}) {
    INFO(newer);
    const ModelConfig a = parse(fixture(newer)), b = parse(fixture(older));
    CHECK(a.rope_theta == b.rope_theta);
    CHECK(a.rope_scaling.kind == b.rope_scaling.kind);
    CHECK(a.rope_scaling.factor == b.rope_scaling.factor);
    CHECK(a.rope_scaling.mscale == b.rope_scaling.mscale);
    CHECK(a.rope_scaling.original_max_position_embeddings ==
          b.rope_scaling.original_max_position_embeddings);
    CHECK(a.torch_dtype == b.torch_dtype);
    CHECK(a.router.kind == b.router.kind);
    CHECK(a.head_dim == b.head_dim);
    CHECK(a.quantization.method == b.quantization.method);
    CHECK(tensor_plan(a).size() == tensor_plan(b).size());
  }
  Json v3 = fixture("newer-v3");  // DeepseekV3Config of its own has neither
  v3.erase("topk_method");
  v3.erase("scoring_func");
  CHECK(parse(v3).router.kind == RouterKind::kNoauxTcSigmoid);
}

TEST_CASE("V2 scales only the weights that it does not normalise, as DeepSeek's code does") {
  const Json scaled = {{"norm_topk_prob", true}, {"routed_scaling_factor", 16.0}};
  const RouterSpec normalised = parse_with("deepseek-v2", scaled).router;
  CHECK(normalised.norm_topk_prob);
  CHECK(normalised.routed_scaling_factor == 1.0f);
  Json one = scaled;
  one["num_experts_per_tok"] = 1;
  const RouterSpec single = parse_with("deepseek-v2", one).router;
  CHECK_FALSE(single.norm_topk_prob);
  CHECK(single.routed_scaling_factor == 16.0f);
  CHECK(parse_with("deepseek-v3", {{"norm_topk_prob", false}}).router.routed_scaling_factor ==
        2.5f);
}

TEST_CASE("unknown architectures are refused with those that are known") {
  for (const Json& names :
       {Json({"DeepseekV32ForCausalLM"}), Json({"MixtralForCausalLM"}), Json::array(),
        Json({"LlamaForCausalLM", "LlamaForCausalLM"}), Json({1}), Json("LlamaForCausalLM")}) {
    INFO(names);
    INVALID(parse_with("r1-distill-llama-8b", {{"architectures", names}}),
            "config.json: architectures is",
            "supported are DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, Qwen2ForCausalLM, "
            "LlamaForCausalLM");
  }
  INVALID(parse(without("r1-distill-llama-8b", "architectures")), "architectures is missing");
  INVALID(parse_with("r1-distill-llama-8b", {{"model_type", "qwen2"}}), "model_type is \"qwen2\"",
          "\"llama\"");
}

TEST_CASE("fields that change the result and are not implemented are refused by name and value") {
  struct Row {
    const char* name;
    Json changes;
    std::string message;
  };
  const Row rows[] = {
      {"r1-distill-llama-8b", {{"hidden_act", "gelu"}}, "hidden_act is \"gelu\"; only \"silu\""},
      {"r1-distill-llama-8b", {{"attention_bias", true}}, "attention_bias is true"},
      {"r1-distill-llama-8b", {{"mlp_bias", true}}, "mlp_bias is true"},
      {"r1-distill-llama-8b", {{"pretraining_tp", 2}}, "pretraining_tp is 2"},
      {"r1-distill-llama-8b", {{"partial_rotary_factor", 0.5}}, "partial_rotary_factor is 0.5"},
      {"r1-distill-llama-8b", {{"is_encoder_decoder", true}}, "is_encoder_decoder is true"},
      {"r1-distill-llama-8b", {{"pruned_heads", {{"1", {0}}}}}, "pruned_heads"},
      {"r1-distill-llama-8b", {{"torch_dtype", "float64"}}, "torch_dtype is \"float64\""},
      {"r1-distill-llama-8b", {{"dtype", "float16"}}, "torch_dtype says otherwise"},
      {"r1-distill-llama-8b",
       {{"quantization_config", {{"quant_method", "exl2"}}}},
       "quantization_config.quant_method is \"exl2\"; supported are fp8, compressed-tensors, awq and gptq"},
      {"deepseek-v3",
       {{"quantization_config", {{"quant_method", "fp8"}}}},
       "quantization_config.weight_block_size is missing"},
      {"deepseek-v3",
       {{"quantization_config", {{"quant_method", "fp8"}, {"fmt", "e5m2"}}}},
       "fmt is \"e5m2\""},
      {"deepseek-v3",
       {{"quantization_config",
         {{"quant_method", "fp8"},
          {"activation_scheme", "static"},
          {"weight_block_size", {128, 128}}}}},
       "activation_scheme is \"static\""},
      {"deepseek-v3",
       {{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {0, 128}}}}},
       "weight_block_size is [0,128]"},
      {"deepseek-v3",
       {{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128}}}}},
       "weight_block_size is [128]"},
      {"deepseek-v3",
       {{"quantization_config",
         {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}, {"odd", 1}}}},
       "quantization_config.odd"},
      {"r1-distill-qwen-7b", {{"use_sliding_window", true}}, "use_sliding_window is true"},
      {"r1-distill-qwen-7b", {{"use_mrope", true}}, "use_mrope is true"},
      {"r1-distill-qwen-7b", {{"layer_types", {"full_attention"}}}, "layer_types"},
      {"newer-qwen2", {{"num_hidden_layers", 27}}, "layer_types"},
      {"r1-distill-qwen-7b",
       {{"dual_chunk_attention_config", {{"a", 1}}}},
       "dual_chunk_attention_config"},
      {"deepseek-v3", {{"attention_bias", true}}, "attention_bias is true"},
      {"deepseek-v3", {{"num_key_value_heads", 8}}, "num_key_value_heads is 8; only 128"},
      {"deepseek-v3",
       {{"scoring_func", "softmax"}},
       "scoring_func is \"softmax\"; only \"sigmoid\""},
      {"deepseek-v3", {{"topk_method", "greedy"}}, "topk_method is \"greedy\""},
      {"deepseek-v2", {{"topk_method", "noaux_tc"}}, "topk_method is \"noaux_tc\""},
      {"deepseek-v2", {{"scoring_func", "sigmoid"}}, "scoring_func is \"sigmoid\""},
      {"deepseek-v3", {{"head_dim", 128}}, "head_dim is 128; only 64"},
      {"deepseek-v3", {{"qk_head_dim", 128}}, "qk_head_dim is 128; only 192"},
      {"deepseek-v3", {{"surprise", {1, 2}}}, "\"surprise\" (with value [1,2]) is not known"},
  };
  for (const Row& row : rows)
    INVALID(parse_with(row.name, row.changes), "config.json: ", row.message);
  CHECK_NOTHROW(parse_with("deepseek-v3", {{"surprise", nullptr}}));
}

TEST_CASE("rope scalings") {
  const auto rope = [](const Json& scaling) {
    return parse_with("r1-distill-llama-8b", {{"rope_scaling", scaling}}).rope_scaling;
  };
  CHECK(rope(nullptr).kind == RopeScaling::Kind::kNone);
  CHECK(rope({{"rope_type", "default"}}).kind == RopeScaling::Kind::kNone);
  CHECK(rope({{"type", "linear"}, {"factor", 2.0}}).kind == RopeScaling::Kind::kLinear);
  const RopeScaling yarn =
      rope({{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}});
  CHECK(yarn.kind == RopeScaling::Kind::kYarn);
  CHECK(yarn.beta_fast == 32);
  CHECK(yarn.beta_slow == 1);
  CHECK(yarn.mscale == 1);
  CHECK(yarn.mscale_all_dim == 0);
  CHECK(rope({{"type", "yarn"}, {"factor", 4.0}}).original_max_position_embeddings == 131072);
  CHECK(rope({{"type", "yarn"}, {"factor", 4.0}, {"attention_factor", 1.5}}).attention_factor ==
        1.5);

  INVALID(rope({{"type", "dynamic"}, {"factor", 2.0}}),
          "rope_scaling.type is \"dynamic\"; supported are");
  INVALID(rope({{"rope_type", "longrope"}, {"factor", 2.0}}),
          "rope_scaling.rope_type is \"longrope\"");
  INVALID(rope({{"type", "linear"}, {"rope_type", "yarn"}, {"factor", 2.0}}),
          "rope_type says otherwise");
  INVALID(rope({{"type", "linear"}}), "rope_scaling.factor is missing");
  INVALID(rope({{"type", "linear"}, {"factor", 0.5}}), "rope_scaling.factor is 0.5");
  INVALID(rope({{"type", "linear"}, {"factor", "2"}}), "rope_scaling.factor is \"2\"");
  INVALID(rope({{"type", "yarn"}, {"factor", 2.0}, {"surprise", 1}}), "\"rope_scaling.surprise\"");
  INVALID(rope({{"type", "yarn"}, {"factor", 2.0}, {"truncate", false}}), "truncate is false");
  INVALID(rope({{"type", "yarn"}, {"factor", 2.0}, {"mscale", 0.7}}), "mscale is 0.7");
  INVALID(rope({{"type", "yarn"}, {"factor", 2.0}, {"beta_fast", 1}, {"beta_slow", 2}}),
          "beta_fast is 1");
  INVALID(rope({{"type", "llama3"}, {"factor", 2.0}}), "low_freq_factor is missing");
  INVALID(
      rope({{"type", "llama3"}, {"factor", 2.0}, {"low_freq_factor", 4}, {"high_freq_factor", 4}}),
      "high_freq_factor is 4");
  INVALID(rope({{"type", "default"}, {"partial_rotary_factor", 0.25}}),
          "partial_rotary_factor is 0.25");
  INVALID(rope(Json::array({1})), "rope_scaling is [1]; should be an object");
  INVALID(rope({{"type", "default"}, {"rope_theta", 1e4}}), "rope_theta is 10000.0",
          "says otherwise");
  INVALID(parse_with("r1-distill-llama-8b", {{"rope_parameters", {{"rope_type", "default"}}}}),
          "rope_parameters is there too");
}

TEST_CASE("numbers out of range are refused") {
  struct Row {
    const char* name;
    const char* field;
    Json value;
  };
  const Row rows[] = {{"deepseek-v3", "hidden_size", 0},
                      {"deepseek-v3", "hidden_size", -1},
                      {"deepseek-v3", "hidden_size", 18446744073709551615u},
                      {"deepseek-v3", "hidden_size", 1e300},
                      {"deepseek-v3", "hidden_size", 7168.5},
                      {"deepseek-v3", "hidden_size", "7168"},
                      {"deepseek-v3", "hidden_size", true},
                      {"deepseek-v3", "hidden_size", Json::array()},
                      {"deepseek-v3", "num_hidden_layers", 100000},
                      {"deepseek-v3", "num_attention_heads", 0},
                      {"deepseek-v3", "vocab_size", 4294967296},
                      {"deepseek-v3", "intermediate_size", 1 << 30},
                      {"deepseek-v3", "max_position_embeddings", 0},
                      {"deepseek-v3", "rms_norm_eps", -1e-6},
                      {"deepseek-v3", "rms_norm_eps", "x"},
                      {"deepseek-v3", "rope_theta", 1},
                      {"deepseek-v3", "rope_theta", -5},
                      {"deepseek-v3", "q_lora_rank", 0},
                      {"deepseek-v3", "kv_lora_rank", 0},
                      {"deepseek-v3", "qk_rope_head_dim", 63},
                      {"deepseek-v3", "v_head_dim", 0},
                      {"deepseek-v3", "n_routed_experts", 0},
                      {"deepseek-v3", "n_routed_experts", 1 << 20},
                      {"deepseek-v3", "n_shared_experts", 0},
                      {"deepseek-v3", "num_experts_per_tok", 0},
                      {"deepseek-v3", "num_experts_per_tok", 257},
                      {"deepseek-v3", "num_experts_per_tok", 129},
                      {"deepseek-v3", "n_group", 7},
                      {"deepseek-v3", "n_group", 256},
                      {"deepseek-v3", "n_group", 0},
                      {"deepseek-v3", "topk_group", 9},
                      {"deepseek-v3", "first_k_dense_replace", 62},
                      {"deepseek-v3", "moe_layer_freq", 0},
                      {"deepseek-v3", "num_nextn_predict_layers", -1},
                      {"deepseek-v3", "routed_scaling_factor", 0},
                      {"deepseek-v3", "norm_topk_prob", 1},
                      {"deepseek-v3", "tie_word_embeddings", "no"},
                      {"deepseek-v3", "eos_token_id", 129280},
                      {"deepseek-v3", "eos_token_id", -1},
                      {"deepseek-v3", "eos_token_id", {1, "2"}},
                      {"deepseek-v3", "bos_token_id", 129280},
                      {"r1-distill-llama-8b", "num_key_value_heads", 5},
                      {"r1-distill-llama-8b", "num_key_value_heads", 33},
                      {"r1-distill-llama-8b", "head_dim", 127},
                      {"r1-distill-llama-8b", "head_dim", 1 << 20},
                      {"r1-distill-llama-8b", "num_attention_heads", 31},
                      {"r1-distill-llama-8b", "hidden_size", 32}};
  for (const Row& row : rows) {
    INFO(row.field << " = " << row.value);
    INVALID(parse_with(row.name, {{row.field, row.value}}), "config.json: ");
  }
}

TEST_CASE("fields without a safe default have to be there") {
  for (const char* field : {"hidden_size",
                            "num_hidden_layers",
                            "num_attention_heads",
                            "vocab_size",
                            "intermediate_size",
                            "max_position_embeddings",
                            "rms_norm_eps",
                            "hidden_act",
                            "kv_lora_rank",
                            "qk_nope_head_dim",
                            "qk_rope_head_dim",
                            "v_head_dim",
                            "n_routed_experts",
                            "n_shared_experts",
                            "moe_intermediate_size",
                            "first_k_dense_replace",
                            "num_experts_per_tok",
                            "n_group",
                            "topk_group",
                            "norm_topk_prob",
                            "routed_scaling_factor"}) {
    INVALID(parse(without("deepseek-v3", field)), std::string(field) + " is missing");
  }
  INVALID(parse(without("r1-distill-qwen-7b", "num_key_value_heads")),
          "num_key_value_heads is missing");
  CHECK(parse(without("r1-distill-llama-8b", "num_key_value_heads")).num_key_value_heads == 32);
  CHECK(parse(without("r1-distill-llama-8b", "eos_token_id")).eos_token_ids.empty());
}

TEST_CASE("text that is not a config is refused without its raw bytes") {
  for (const char* text : {"", "{", "[]", "null", "7", "{} x", "{\"a\":1,\"a\":1}", "{\"a\":1e999}",
                           "\xff\xfe", "{\"\x01\":1}"}) {
    INFO(text);
    INVALID(parse_model_config(text, "config.json"), "config.json");
  }
  INVALID(parse_model_config("{\"a\":{\"b\":1,\"b\":2}}", "c"), "\"b\" appears twice");
  INVALID(parse_model_config(std::string(100000, '['), "c"), "nested deeper");
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  INVALID(parse_model_config(objects, "c"), "nested deeper");
  INVALID(parse_with("deepseek-v3", {{"\x1b[2J", "\n"}}), "\\x1b[2J", "\\n");
}

TEST_CASE("a folder: config.json, and generation_config.json over it") {
  const test::TempDir dir;
  INVALID(read_model_config(dir.path()), "config.json: missing");
  dir.write("config.json", fixture("r1-distill-llama-8b").dump());
  CHECK(read_model_config(dir.path()).eos_token_ids == std::vector<int32_t>{128001});
  CHECK_FALSE(read_generation_defaults(dir.path()).temperature);

  dir.write("generation_config.json",
            "{\"_from_model_config\":true,\"bos_token_id\":128000,\"do_sample\":true,\"eos_token_"
            "id\":[128001,128008],"
            "\"temperature\":0.6,\"top_p\":0.95,\"top_k\":20,\"num_beams\":1,\"transformers_"
            "version\":\"4.39.3\"}");
  CHECK(read_model_config(dir.path()).eos_token_ids == std::vector<int32_t>{128001, 128008});
  const GenerationDefaults defaults = read_generation_defaults(dir.path());
  CHECK(defaults.temperature == 0.6f);
  CHECK(defaults.top_p == 0.95f);
  CHECK(defaults.top_k == 20);
  CHECK(defaults.do_sample == true);
  CHECK_FALSE(defaults.min_p);

  dir.write("generation_config.json", "{}");
  CHECK(read_model_config(dir.path()).eos_token_ids == std::vector<int32_t>{128001});
  for (const char* text :
       {"{\"temperature\":-1}", "{\"top_p\":2}", "{\"top_p\":0}", "{\"top_k\":-1}",
        "{\"min_p\":1.5}", "{\"do_sample\":1}", "{\"repetition_penalty\":0}", "{\"num_beams\":4}",
        "{\"bad_words_ids\":[[1]]}", "{\"no_repeat_ngram_size\":3}", "{\"eos_token_id\":128256}",
        "[]", "x"}) {
    INFO(text);
    dir.write("generation_config.json", text);
    INVALID(read_model_config(dir.path()), "generation_config.json");
  }
  dir.write("config.json", std::string((1 << 20) + 1, ' '));
  INVALID(read_model_config(dir.path()), "config.json", "1048576");
}

}  // namespace
}  // namespace shoal
