#include "runtime/model/model_config.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/checkpoint/gguf_config.h"
#include "runtime/checkpoint/strict_json.h"
#include "runtime/model/config_fields.h"

namespace shoal {
namespace {

// Bounds of what a config may say, a factor of 8 or more over the largest published model: products
// of any three of them with an element size stay below 2^63.
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kMaxPositions = int64_t{1} << 27;

struct Known {
  const char* name;
  const char* model_type;
  Architecture architecture;
};
constexpr Known kKnown[] = {{"DeepseekV2ForCausalLM", "deepseek_v2", Architecture::kDeepseekV2},
                            {"DeepseekV3ForCausalLM", "deepseek_v3", Architecture::kDeepseekV3},
                            {"Qwen2ForCausalLM", "qwen2", Architecture::kQwen2},
                            {"LlamaForCausalLM", "llama", Architecture::kLlama}};

void read_architecture(ConfigFields& fields, ModelConfig& config) {
  const nlohmann::json& names = fields.require("architectures");
  constexpr const char* kSupported =
      "supported are DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, Qwen2ForCausalLM, "
      "LlamaForCausalLM";
  if (!names.is_array() || names.size() != 1 || !names[0].is_string()) {
    fields.refuse("architectures", kSupported);
  }
  for (const Known& known : kKnown) {
    if (names[0] != known.name) continue;
    config.architecture = known.architecture;
    config.architecture_name = known.name;
    config.model_type = known.model_type;
    fields.only("model_type", known.model_type);
    return;
  }
  fields.refuse("architectures", kSupported);
}

// Fields that name a way to train, to store or to run elsewhere. auto_map names Python code of the
// checkpoint: nothing here runs it.
void ignore_harmless(ConfigFields& fields) {
  fields.ignore({"_attn_implementation",
                 "_attn_implementation_autoset",
                 "_commit_hash",
                 "_model_name_or_path",
                 "_name_or_path",
                 "attention_dropout",
                 "attn_implementation",
                 "auto_map",
                 "finetuning_task",
                 "gradient_checkpointing",
                 "id2label",
                 "initializer_range",
                 "keys_to_ignore_at_inference",
                 "label2id",
                 "output_attentions",
                 "output_hidden_states",
                 "pad_token_id",
                 "problem_type",
                 "return_dict",
                 "task_specific_params",
                 "tokenizer_class",
                 "torchscript",
                 "transformers_version",
                 "unk_token_id",
                 "unsloth_fixed",
                 "unsloth_version",
                 "use_bfloat16",
                 "use_cache"});
  fields.only("add_cross_attention", false);
  fields.only("chunk_size_feed_forward", 0);
  fields.only("is_decoder", false);
  fields.only("is_encoder_decoder", false);
  fields.only("pretraining_tp", 1);  // other values split the matrices, and round, differently
  fields.only("pruned_heads", nlohmann::json::object());
  fields.only("tie_encoder_decoder", false);
}

DType torch_dtype(ConfigFields& fields, const std::string& name) {
  const std::string text = fields.text(name);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (text == dtype_name(dtype)) return dtype;
  }
  fields.refuse(name, "supported are float32, float16 and bfloat16");
}

void read_dtype(ConfigFields& fields, ModelConfig& config) {
  for (const char* name : {"torch_dtype", "dtype"}) {  // the older and the newer name
    if (fields.find(name) != nullptr) config.torch_dtype = torch_dtype(fields, name);
  }
  if (fields.has("torch_dtype") && fields.has("dtype") &&
      fields.require("torch_dtype") != fields.require("dtype")) {
    fields.refuse("dtype", "torch_dtype says otherwise");
  }
}

void read_yarn(ConfigFields& rope, RopeScaling& scaling) {
  scaling.kind = RopeScaling::Kind::kYarn;
  scaling.beta_fast = rope.number("beta_fast", 1e-3, 1e6, 32);
  scaling.beta_slow = rope.number("beta_slow", 1e-3, 1e6, 1);
  if (scaling.beta_fast < scaling.beta_slow)
    rope.refuse("beta_fast", "should not be below beta_slow");
  scaling.mscale = rope.number("mscale", 0, 100, 1);
  scaling.mscale_all_dim = rope.number("mscale_all_dim", 0, 100, 0);
  // DeepSeek's code and Hugging Face's read these two differently.
  if (scaling.mscale != 1 && scaling.mscale_all_dim == 0) {
    rope.refuse("mscale", "without mscale_all_dim only 1 is supported");
  }
  if (scaling.mscale == 0) rope.refuse("mscale", "should be above 0");
  if (rope.find("attention_factor") != nullptr) {
    scaling.attention_factor = rope.number("attention_factor", 1e-3, 1e3);
  }
  rope.only("truncate", true);
}

void read_llama3(ConfigFields& rope, RopeScaling& scaling) {
  scaling.kind = RopeScaling::Kind::kLlama3;
  scaling.low_freq_factor = rope.number("low_freq_factor", 1e-3, 1e6);
  scaling.high_freq_factor = rope.number("high_freq_factor", 1e-3, 1e6);
  if (scaling.high_freq_factor <= scaling.low_freq_factor) {
    rope.refuse("high_freq_factor", "should be above low_freq_factor");
  }
}

void read_rope(ConfigFields& fields, ModelConfig& config) {
  // Above 1: an angle per dimension needs a logarithm that is not 0.
  constexpr double kMinTheta = 1.001, kMaxTheta = 1e12;
  const bool old_form = fields.find("rope_scaling") != nullptr;
  const bool new_form = fields.find("rope_parameters") != nullptr;
  fields.only("partial_rotary_factor", 1.0);
  if (fields.find("rope_theta") != nullptr) {
    config.rope_theta = fields.number("rope_theta", kMinTheta, kMaxTheta);
  }
  if (old_form && new_form) fields.refuse("rope_scaling", "rope_parameters is there too; give one");
  if (!old_form && !new_form) return;

  const char* name = old_form ? "rope_scaling" : "rope_parameters";
  ConfigFields rope(fields.require(name), fields.source(), std::string(name) + ".");
  rope.only("partial_rotary_factor", 1.0);
  if (rope.find("rope_theta") != nullptr) {
    const double theta = rope.number("rope_theta", kMinTheta, kMaxTheta);
    if (fields.has("rope_theta") && theta != config.rope_theta) {
      rope.refuse("rope_theta", "the config's own rope_theta says otherwise");
    }
    config.rope_theta = theta;
  }
  const std::string old_type = rope.text("type", ""), new_type = rope.text("rope_type", "");
  if (!old_type.empty() && !new_type.empty() && old_type != new_type) {
    rope.refuse("type", "rope_type says otherwise");
  }
  const std::string type = !new_type.empty() ? new_type : !old_type.empty() ? old_type : "default";
  RopeScaling& scaling = config.rope_scaling;
  if (type != "default") {
    scaling.factor = rope.number("factor", 1, 1e6);
    scaling.original_max_position_embeddings = rope.integer(
        "original_max_position_embeddings", 1, kMaxPositions, config.max_position_embeddings);
  }
  if (type == "yarn") {
    read_yarn(rope, scaling);
  } else if (type == "llama3") {
    read_llama3(rope, scaling);
  } else if (type == "linear") {
    scaling.kind = RopeScaling::Kind::kLinear;
  } else if (type != "default") {
    rope.refuse(new_type.empty() ? "type" : "rope_type",
                "supported are default, linear, yarn and llama3");
  }
  rope.refuse_unknown();
}

void read_common(ConfigFields& fields, ModelConfig& config) {
  config.hidden_size = fields.integer("hidden_size", 1, kMaxWidth);
  config.num_hidden_layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  config.num_attention_heads = fields.integer("num_attention_heads", 1, kMaxHeads);
  config.vocab_size = fields.integer("vocab_size", 1, kMaxVocab);
  config.intermediate_size = fields.integer("intermediate_size", 1, kMaxWidth);
  config.max_position_embeddings = fields.integer("max_position_embeddings", 1, kMaxPositions);
  config.rms_norm_eps = fields.number("rms_norm_eps", 0, 1);
  config.tie_word_embeddings = fields.flag("tie_word_embeddings", false);
  fields.require("hidden_act");
  fields.only("hidden_act", "silu");
  fields.only("attention_bias", false);
  fields.only("mlp_bias", false);
  read_rope(fields, config);
  read_dtype(fields, config);
  config.quantization = read_quantization_config(fields);
  config.eos_token_ids = fields.token_ids("eos_token_id", config.vocab_size);
  if (fields.find("bos_token_id") != nullptr) {
    config.bos_token_id =
        static_cast<int32_t>(fields.integer("bos_token_id", 0, config.vocab_size - 1));
  }
  ignore_harmless(fields);
}

void read_dense(ConfigFields& fields, ModelConfig& config) {
  const int64_t heads = config.num_attention_heads;
  const bool qwen2 = config.architecture == Architecture::kQwen2;
  // The defaults of Hugging Face's Qwen2Config and LlamaConfig differ: Qwen2 has to say it.
  config.num_key_value_heads = qwen2 ? fields.integer("num_key_value_heads", 1, heads)
                                     : fields.integer("num_key_value_heads", 1, heads, heads);
  if (heads % config.num_key_value_heads != 0) {
    fields.refuse("num_key_value_heads",
                  fmt::format("should divide num_attention_heads, {}", heads));
  }
  if (!fields.has("head_dim") && config.hidden_size % heads != 0) {
    fields.refuse(
        "num_attention_heads",
        fmt::format("should divide hidden_size, {}, or head_dim be there", config.hidden_size));
  }
  config.head_dim =
      fields.integer("head_dim", 2, kMaxHeadDim, std::max<int64_t>(config.hidden_size / heads, 1));
  if (config.head_dim % 2 != 0 || config.head_dim > kMaxHeadDim) {
    fields.refuse("head_dim",
                  fmt::format("{} is not an even number up to {}", config.head_dim, kMaxHeadDim));
  }
  if (!qwen2) return;
  config.attention_bias = true;
  fields.only("use_sliding_window", false);
  fields.only("use_mrope", false);
  fields.ignore({"sliding_window", "max_window_layers"});  // without use_sliding_window no effect
  if (const nlohmann::json* types = fields.find("layer_types")) {
    const nlohmann::json full(static_cast<size_t>(config.num_hidden_layers), "full_attention");
    if (*types != full) {
      fields.refuse("layer_types", "only \"full_attention\" for each layer is supported");
    }
  }
}

void read_router(ConfigFields& fields, ModelConfig& config) {
  RouterSpec& router = config.router;
  const int64_t experts = config.n_routed_experts;
  const bool v3 = config.architecture == Architecture::kDeepseekV3;
  fields.only("scoring_func", v3 ? "sigmoid" : "softmax");
  const std::string method = fields.text("topk_method", v3 ? "noaux_tc" : "greedy");
  if (v3 && method == "noaux_tc") {
    router.kind = RouterKind::kNoauxTcSigmoid;
  } else if (!v3 && method == "greedy") {
    router.kind = RouterKind::kGreedySoftmax;
  } else if (!v3 && method == "group_limited_greedy") {
    router.kind = RouterKind::kGroupLimitedSoftmax;
  } else {
    fields.refuse("topk_method", fmt::format("supported for {}: {}", config.architecture_name,
                                             v3 ? "noaux_tc" : "greedy, group_limited_greedy"));
  }
  router.top_k = static_cast<int32_t>(fields.integer("num_experts_per_tok", 1, experts));
  if (router.kind == RouterKind::kGreedySoftmax) {
    fields.ignore({"n_group", "topk_group"});  // without effect on "greedy"
  } else {
    router.n_group = static_cast<int32_t>(fields.integer("n_group", 1, experts));
    router.topk_group = static_cast<int32_t>(fields.integer("topk_group", 1, router.n_group));
    if (experts % router.n_group != 0) {
      fields.refuse("n_group", fmt::format("should divide n_routed_experts, {}", experts));
    }
    const int64_t group = experts / router.n_group;
    if (v3 && router.n_group > 1 && group < 2) {
      fields.refuse("n_group", "a group's score is the sum of its two best: it needs two experts");
    }
    if (router.top_k > router.topk_group * group) {
      fields.refuse("num_experts_per_tok",
                    fmt::format("topk_group groups of {} hold only {} experts", group,
                                router.topk_group * group));
    }
  }
  // Original and Hugging Face's defaults differ for V3: it has to say them.
  bool normalise = v3 ? fields.flag("norm_topk_prob") : fields.flag("norm_topk_prob", false);
  double scale = v3 ? fields.number("routed_scaling_factor", 1e-6, 1e6)
                    : fields.number("routed_scaling_factor", 1e-6, 1e6, 1.0);
  // As in DeepSeek's modeling code: one expert is never normalised, and V2 scales only the weights
  // that it does not normalise.
  normalise = normalise && router.top_k > 1;
  if (!v3 && normalise) scale = 1;
  router.norm_topk_prob = normalise;
  router.routed_scaling_factor = static_cast<float>(scale);
}

void read_deepseek(ConfigFields& fields, ModelConfig& config) {
  fields.only("num_key_value_heads", config.num_attention_heads);
  if (fields.find("q_lora_rank") != nullptr) {  // null: none
    config.q_lora_rank = fields.integer("q_lora_rank", 1, kMaxWidth);
  }
  config.kv_lora_rank = fields.integer("kv_lora_rank", 1, kMaxWidth);
  config.qk_nope_head_dim = fields.integer("qk_nope_head_dim", 1, kMaxHeadDim);
  config.qk_rope_head_dim = fields.integer("qk_rope_head_dim", 2, kMaxHeadDim);
  if (config.qk_rope_head_dim % 2 != 0) fields.refuse("qk_rope_head_dim", "should be even");
  config.v_head_dim = fields.integer("v_head_dim", 1, kMaxHeadDim);
  // Hugging Face writes these two, derived from the ones above.
  fields.only("head_dim", config.qk_rope_head_dim);
  fields.only("qk_head_dim", config.qk_head_dim());
  config.rope_interleave = fields.flag("rope_interleave", true);

  config.n_routed_experts = fields.integer("n_routed_experts", 1, kMaxExperts);
  config.n_shared_experts = fields.integer("n_shared_experts", 1, 64);
  config.moe_intermediate_size = fields.integer("moe_intermediate_size", 1, kMaxWidth / 64);
  config.first_k_dense_replace =
      fields.integer("first_k_dense_replace", 0, config.num_hidden_layers);
  config.moe_layer_freq = fields.integer("moe_layer_freq", 1, kMaxLayers, 1);
  const char* mtp = fields.has("num_mtp_layers") ? "num_mtp_layers" : "num_nextn_predict_layers";
  config.num_nextn_predict_layers = fields.integer(mtp, 0, 16, 0);
  read_router(fields, config);
  // Of training, and how DeepSeek's own code spreads experts.
  fields.ignore(
      {"aux_loss_alpha", "ep_size", "output_router_logits", "router_aux_loss_coef", "seq_aux"});
}

}  // namespace

ModelConfig parse_model_config(const std::string& json, const std::string& source) {
  const nlohmann::json document = parse_strict_json(json, source);
  ConfigFields fields(document, source);
  ModelConfig config;
  read_architecture(fields, config);
  read_common(fields, config);
  if (config.architecture == Architecture::kDeepseekV2 ||
      config.architecture == Architecture::kDeepseekV3) {
    read_deepseek(fields, config);
  } else {
    read_dense(fields, config);
  }
  fields.refuse_unknown();
  return config;
}

namespace {

ModelConfig read_gguf_config(const std::string& path) {
  const std::unique_ptr<GgufModel> model = GgufModel::open(path);
  ModelConfig config =
      parse_model_config(gguf_config_json(*model), path + ", its metadata as config.json");
  const int64_t rotated = config.is_mla() ? config.qk_rope_head_dim : config.head_dim;
  config.rope_scaling.factors = gguf_rope_factors(*model, rotated / 2);
  if (config.rope_scaling.factors.empty()) return config;
  if (config.rope_scaling.kind != RopeScaling::Kind::kNone) {
    throw_invalid("{}: has rope_freqs.weight and a rope.scaling.type; one of them is supported",
                  path);
  }
  config.rope_scaling.kind = RopeScaling::Kind::kFactors;
  return config;
}

}  // namespace

ModelConfig read_model_config(const std::string& dir) {
  if (is_gguf(dir)) return read_gguf_config(dir);
  const std::string path = dir + "/config.json";
  if (!path_exists(path)) throw_invalid("{}: missing; a checkpoint folder has one", path);
  ModelConfig config = parse_model_config(read_small_file(path, kMaxConfigBytes), path);
  const std::string generation = dir + "/generation_config.json";
  if (path_exists(generation)) {
    GenerationDefaults defaults = parse_generation_defaults(
        read_small_file(generation, kMaxConfigBytes), generation, config.vocab_size);
    if (!defaults.eos_token_ids.empty()) config.eos_token_ids = std::move(defaults.eos_token_ids);
  }
  return config;
}

}  // namespace shoal
