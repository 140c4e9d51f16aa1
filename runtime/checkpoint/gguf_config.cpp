#include "runtime/checkpoint/gguf_config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/base/error.h"
#include "runtime/checkpoint/gguf_blocks.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

using Json = nlohmann::json;

// The keys ARCHITECTURE.*, each read once; what nobody asked for is refused at the end.
class Keys {
 public:
  Keys(const GgufMetadata& metadata, std::string prefix)
      : metadata_(metadata), prefix_(std::move(prefix)) {}

  std::optional<int64_t> integer(const std::string& name) { return metadata_.integer(known(name)); }
  std::optional<double> number(const std::string& name) { return metadata_.number(known(name)); }
  std::optional<bool> flag(const std::string& name) { return metadata_.flag(known(name)); }
  std::string text(const std::string& name, const char* fallback) {
    const std::string* value = metadata_.text(known(name));
    return value == nullptr ? fallback : *value;
  }
  int64_t require(const std::string& name) {
    if (const auto value = integer(name)) return *value;
    metadata_.refuse_missing(prefix_ + name, "an integer");
  }
  // One number, or the same one for every layer.
  std::optional<int64_t> per_layer(const std::string& name) {
    const std::string key = known(name);
    const auto it = metadata_.values().find(key);
    if (it == metadata_.values().end()) return std::nullopt;
    if (!std::holds_alternative<GgufArray>(it->second)) return metadata_.integer(key);
    const GgufArray& array = *metadata_.integers(key);
    for (uint64_t i = 1; i < array.size(); ++i) {
      if (array.integer(i) != array.integer(0)) {
        refuse(name, "layers that differ are not supported");
      }
    }
    if (array.size() == 0) refuse(name, "should be a number");
    return array.integer(0);
  }
  void ignore(std::initializer_list<const char*> names) {
    for (const char* name : names) known(name);
  }
  // Absent, or the value that changes nothing.
  void only(const std::string& name, double value) {
    const auto it = metadata_.values().find(known(name));
    if (it == metadata_.values().end()) return;
    const auto* flag = std::get_if<bool>(&it->second);
    const double said = flag != nullptr ? (*flag ? 1 : 0) : *number(name);
    if (said != value) refuse(name, fmt::format("only {} is supported", value));
  }
  [[noreturn]] void refuse(const std::string& name, const std::string& right) const {
    metadata_.refuse(prefix_ + name, right);
  }
  void refuse_unknown() const {
    for (const auto& [key, value] : metadata_.values()) {
      if (key.starts_with(prefix_) && known_.count(key) == 0) {
        metadata_.refuse(key, "a key that is not known: it may change the result");
      }
    }
  }

 private:
  std::string known(const std::string& name) { return *known_.insert(prefix_ + name).first; }

  const GgufMetadata& metadata_;
  const std::string prefix_;
  std::set<std::string> known_;
};

template <typename T>
void set_if(Json& json, const char* field, const std::optional<T>& value) {
  if (value) json[field] = *value;
}

void read_rope(Keys& keys, bool deepseek, Json& json) {
  set_if(json, "rope_theta", keys.number("rope.freq_base"));
  keys.only("rope.scale_linear", 1);
  keys.only("rope.scaling.attn_factor", 1);
  keys.only("rope.scaling.yarn_attn_factor", 1);
  keys.only("rope.scaling.yarn_ext_factor", 1);
  keys.ignore({"rope.scaling.finetuned"});
  const std::string type = keys.text("rope.scaling.type", "none");
  const auto factor = keys.number("rope.scaling.factor");
  const auto original = keys.integer("rope.scaling.original_context_length");
  const auto beta_fast = keys.number("rope.scaling.yarn_beta_fast");
  const auto beta_slow = keys.number("rope.scaling.yarn_beta_slow");
  // llama.cpp's converter writes a tenth of DeepSeek's mscale_all_dim here, which is its mscale
  // too.
  const auto log_multiplier = keys.number("rope.scaling.yarn_log_multiplier");
  if (type == "none" || (factor && *factor == 1 && type != "yarn")) return;
  Json rope = {{"type", type}};
  set_if(rope, "factor", factor);
  set_if(rope, "original_max_position_embeddings", original);
  if (type == "yarn") {
    set_if(rope, "beta_fast", beta_fast);
    set_if(rope, "beta_slow", beta_slow);
    if (log_multiplier && *log_multiplier != 0) {
      if (!deepseek) keys.refuse("rope.scaling.yarn_log_multiplier", "only deepseek2 has it");
      // 0.0707 is 0.707 and not 0.70699999999.
      constexpr double kDigits = 1e6;
      rope["mscale"] = rope["mscale_all_dim"] =
          std::round(*log_multiplier * 10 * kDigits) / kDigits;
    }
  } else if (type != "linear") {
    keys.refuse("rope.scaling.type", "supported are none, linear and yarn");
  }
  json["rope_scaling"] = rope;
}

void read_dense(Keys& keys, Json& json) {
  const int64_t heads = json["num_attention_heads"];
  json["num_key_value_heads"] = keys.per_layer("attention.head_count_kv").value_or(heads);
  const int64_t hidden = json["hidden_size"];
  const auto key_length = keys.integer("attention.key_length");
  const auto value_length = keys.integer("attention.value_length");
  if (!key_length && (heads < 1 || hidden % heads != 0)) {
    keys.refuse("attention.head_count",
                fmt::format("should divide embedding_length, {}, or attention.key_length be there",
                            hidden));
  }
  const int64_t head_dim = key_length ? *key_length : hidden / heads;
  if (value_length && *value_length != head_dim) {
    keys.refuse("attention.value_length", fmt::format("should be {}, as for keys", head_dim));
  }
  const auto rotated = keys.integer("rope.dimension_count");
  if (rotated && *rotated != head_dim) {
    keys.refuse("rope.dimension_count",
                fmt::format("should be {}: rotating a part of a head is not supported", head_dim));
  }
  json["head_dim"] = head_dim;
  keys.only("expert_count", 0);
  keys.only("expert_used_count", 0);
}

void read_deepseek(Keys& keys, const GgufModel& model, Json& json) {
  enum { kNone = 0, kSoftmax = 1, kSigmoid = 2 };
  const int64_t gating = keys.integer("expert_gating_func").value_or(kNone);
  if (gating != kNone && gating != kSoftmax && gating != kSigmoid) {
    keys.refuse("expert_gating_func", "supported are 1 (softmax) and 2 (sigmoid)");
  }
  // Files made before V3 came do not say it.
  const bool v3 = gating == kSigmoid;
  json["architectures"] = {v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM"};
  const int64_t heads = json["num_attention_heads"];
  keys.ignore({"attention.head_count_kv"});  // 1 in newer files: the absorbed form's
  json["num_key_value_heads"] = heads;
  if (model.find("blk.0.attn_q_a.weight") != nullptr) {
    json["q_lora_rank"] = keys.require("attention.q_lora_rank");
  } else {
    keys.ignore({"attention.q_lora_rank"});
  }
  json["kv_lora_rank"] = keys.require("attention.kv_lora_rank");
  const int64_t rotated = keys.require("rope.dimension_count");
  // Newer files give the lengths of the absorbed form without the suffix.
  const auto key_length_mla = keys.integer("attention.key_length_mla");
  const auto value_length_mla = keys.integer("attention.value_length_mla");
  const int64_t key_length = keys.require("attention.key_length");
  const int64_t value_length = keys.require("attention.value_length");
  const int64_t qk_head_dim = key_length_mla ? *key_length_mla : key_length;
  if (rotated < 0 || qk_head_dim < rotated) {
    keys.refuse(key_length_mla ? "attention.key_length_mla" : "attention.key_length",
                fmt::format("should be more than rope.dimension_count, {}", rotated));
  }
  json["qk_nope_head_dim"] = qk_head_dim - rotated;
  json["qk_rope_head_dim"] = rotated;
  json["v_head_dim"] = value_length_mla ? *value_length_mla : value_length;

  json["n_routed_experts"] = keys.require("expert_count");
  json["num_experts_per_tok"] = keys.require("expert_used_count");
  json["n_shared_experts"] = keys.require("expert_shared_count");
  const auto width = keys.per_layer("expert_feed_forward_length");
  if (!width) keys.refuse("expert_feed_forward_length", "should be there");
  json["moe_intermediate_size"] = *width;
  const auto shared_width = keys.integer("expert_shared_feed_forward_length");
  const int64_t shared = json["n_shared_experts"];
  if (shared_width &&
      (shared < 1 || *shared_width % shared != 0 || *shared_width / shared != *width)) {
    keys.refuse("expert_shared_feed_forward_length",
                "should be expert_feed_forward_length for each shared expert");
  }
  json["first_k_dense_replace"] = keys.integer("leading_dense_block_count").value_or(0);
  // As in llama.cpp, 0 stands for no scaling.
  const double scale = keys.number("expert_weights_scale").value_or(0);
  json["routed_scaling_factor"] = scale == 0 ? 1 : scale;
  json["norm_topk_prob"] = keys.flag("expert_weights_norm").value_or(false);
  // Without groups in the file (those made before 2025-10), experts are not limited to some: so
  // does llama.cpp run them.
  const int64_t groups = keys.integer("expert_group_count").value_or(1);
  const int64_t used_groups = keys.integer("expert_group_used_count").value_or(1);
  json["n_group"] = std::max<int64_t>(groups, 1);
  json["topk_group"] = std::max<int64_t>(used_groups, 1);
  json["scoring_func"] = v3 ? "sigmoid" : "softmax";
  json["topk_method"] = v3 ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy";

  // block_count counts the multi-token-prediction layers, which a file may have left out.
  const int64_t nextn = keys.integer("nextn_predict_layers").value_or(0);
  const int64_t blocks = json["num_hidden_layers"];
  if (nextn != 0 && (nextn < 0 || nextn >= blocks)) {
    keys.refuse("nextn_predict_layers", "should be less than block_count");
  }
  json["num_hidden_layers"] = blocks - nextn;
  if (v3) {
    const std::string probe = fmt::format("blk.{}.nextn.eh_proj.weight", blocks - nextn);
    json["num_nextn_predict_layers"] = model.find(probe) != nullptr ? nextn : 0;
  }
}

const GgufTensor& embedding(const GgufModel& model) {
  const GgufModel::Entry* entry = model.find("token_embd.weight");
  if (entry == nullptr) throw_invalid("{}: tensor \"token_embd.weight\" is missing", model.path());
  return *entry->info;
}

}  // namespace

std::string gguf_config_json(const GgufModel& model) {
  const GgufMetadata& metadata = model.metadata();
  const std::string* architecture = metadata.text("general.architecture");
  constexpr const char* kSupported = "supported are deepseek2, qwen2 and llama";
  if (architecture == nullptr) metadata.refuse_missing("general.architecture", kSupported);
  const bool deepseek = *architecture == "deepseek2", qwen2 = *architecture == "qwen2";
  if (!deepseek && !qwen2 && *architecture != "llama") {
    metadata.refuse("general.architecture", kSupported);
  }
  if (const std::string* type = metadata.text("general.type");
      type != nullptr && *type != "model") {
    metadata.refuse("general.type", "should be \"model\"");
  }

  Keys keys(metadata, *architecture + ".");
  Json json;
  json["architectures"] = {qwen2 ? "Qwen2ForCausalLM" : "LlamaForCausalLM"};
  json["hidden_act"] = "silu";
  json["hidden_size"] = keys.require("embedding_length");
  json["num_hidden_layers"] = keys.require("block_count");
  const auto heads = keys.per_layer("attention.head_count");
  if (!heads) metadata.refuse_missing(*architecture + ".attention.head_count", "an integer");
  json["num_attention_heads"] = *heads;
  const auto width = keys.per_layer("feed_forward_length");
  if (!width) metadata.refuse_missing(*architecture + ".feed_forward_length", "an integer");
  json["intermediate_size"] = *width;
  json["max_position_embeddings"] = keys.require("context_length");
  const auto eps = keys.number("attention.layer_norm_rms_epsilon");
  if (!eps) keys.refuse("attention.layer_norm_rms_epsilon", "should be there");
  json["rms_norm_eps"] = *eps;
  const GgufTensor& embedding_tensor = embedding(model);
  const int64_t rows = embedding_tensor.shape.size() == 2 ? embedding_tensor.shape[0] : 0;
  json["vocab_size"] = keys.integer("vocab_size").value_or(rows);
  json["tie_word_embeddings"] = model.find("output.weight") == nullptr;
  json["torch_dtype"] = embedding_tensor.type->id == GgmlType::Id::kF32   ? "float32"
                        : embedding_tensor.type->id == GgmlType::Id::kF16 ? "float16"
                                                                          : "bfloat16";
  if (const auto eos = gguf_eos_token_ids(metadata); !eos.empty()) json["eos_token_id"] = eos;
  set_if(json, "bos_token_id", gguf_token_id(metadata, "tokenizer.ggml.bos_token_id"));
  read_rope(keys, deepseek, json);
  if (deepseek) {
    read_deepseek(keys, model, json);
  } else {
    read_dense(keys, json);
  }
  keys.only("attention.causal", 1);
  keys.ignore({"tensor_data_layout", "pooling_type", "attention.layer_norm_epsilon"});
  keys.refuse_unknown();
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

std::vector<float> gguf_rope_factors(const GgufModel& model, int64_t pairs) {
  const GgufModel::Entry* entry = model.find("rope_freqs.weight");
  if (entry == nullptr) return {};
  const GgufTensor& tensor = *entry->info;
  const auto refuse = [&](const std::string& right) {
    throw_invalid("{}: tensor \"rope_freqs.weight\" is {}; {}", entry->file->path(),
                  tensor.shape_string(), right);
  };
  if (!is_plain(*tensor.type) || tensor.shape != std::vector<int64_t>{pairs}) {
    refuse(fmt::format("should be F32[{}]", pairs));
  }
  std::vector<std::byte> data(tensor.end - tensor.begin);
  entry->file->read(tensor.begin, tensor.end, data.data());
  std::vector<float> factors(static_cast<size_t>(pairs));
  dequantize(*tensor.type, data.data(), pairs, factors.data());
  for (const float factor : factors) {
    if (!(factor > 0) || !std::isfinite(factor)) refuse("it should hold positive numbers");
  }
  return factors;
}

std::optional<int64_t> gguf_token_id(const GgufMetadata& metadata, const std::string& key) {
  const auto id = metadata.integer(key);
  return id == -1 || id == 0xffffffff ? std::nullopt : id;
}

std::vector<int64_t> gguf_eos_token_ids(const GgufMetadata& metadata) {
  std::vector<int64_t> ids;
  const auto add = [&](std::optional<int64_t> id) {
    if (id && std::find(ids.begin(), ids.end(), *id) == ids.end()) ids.push_back(*id);
  };
  add(gguf_token_id(metadata, "tokenizer.ggml.eos_token_id"));
  const auto eot = gguf_token_id(metadata, "tokenizer.ggml.eot_token_id");
  add(eot);
  add(gguf_token_id(metadata, "tokenizer.ggml.eom_token_id"));
  const auto* tokens = metadata.strings("tokenizer.ggml.tokens");
  if (eot || tokens == nullptr) return ids;
  for (const char* name : {"<|eot_id|>", "<|im_end|>", "<|eom_id|>"}) {
    const auto it = std::find(tokens->begin(), tokens->end(), name);
    if (it != tokens->end()) add(it - tokens->begin());
  }
  return ids;
}

}  // namespace shoal
