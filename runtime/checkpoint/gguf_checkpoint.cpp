#include "runtime/checkpoint/gguf_checkpoint.h"

#include <filesystem>
#include <set>
#include <string_view>

#include "kernels/base/error.h"
#include "runtime/checkpoint/gguf_blocks.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

// After "blk.N." here, after "model.layers.N." there.
struct Name {
  std::string_view gguf, hugging_face;
};
constexpr Name kOfLayer[] = {{"attn_norm.weight", "input_layernorm.weight"},
                             {"ffn_norm.weight", "post_attention_layernorm.weight"},
                             {"attn_q.weight", "self_attn.q_proj.weight"},
                             {"attn_k.weight", "self_attn.k_proj.weight"},
                             {"attn_v.weight", "self_attn.v_proj.weight"},
                             {"attn_q.bias", "self_attn.q_proj.bias"},
                             {"attn_k.bias", "self_attn.k_proj.bias"},
                             {"attn_v.bias", "self_attn.v_proj.bias"},
                             {"attn_output.weight", "self_attn.o_proj.weight"},
                             {"attn_q_a.weight", "self_attn.q_a_proj.weight"},
                             {"attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight"},
                             {"attn_q_b.weight", "self_attn.q_b_proj.weight"},
                             {"attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight"},
                             {"attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"},
                             {"attn_kv_b.weight", "self_attn.kv_b_proj.weight"},
                             {"ffn_gate.weight", "mlp.gate_proj.weight"},
                             {"ffn_up.weight", "mlp.up_proj.weight"},
                             {"ffn_down.weight", "mlp.down_proj.weight"},
                             {"ffn_gate_inp.weight", "mlp.gate.weight"},
                             {"exp_probs_b.bias", "mlp.gate.e_score_correction_bias"},
                             {"ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight"},
                             {"ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight"},
                             {"ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight"},
                             {"nextn.eh_proj.weight", "eh_proj.weight"},
                             {"nextn.enorm.weight", "enorm.weight"},
                             {"nextn.hnorm.weight", "hnorm.weight"},
                             {"nextn.embed_tokens.weight", "embed_tokens.weight"},
                             {"nextn.shared_head_norm.weight", "shared_head.norm.weight"},
                             {"nextn.shared_head_head.weight", "shared_head.head.weight"}};
constexpr Name kOfModel[] = {{"token_embd.weight", "model.embed_tokens.weight"},
                             {"output_norm.weight", "model.norm.weight"},
                             {"output.weight", "lm_head.weight"}};
constexpr std::string_view kRopeFactors = "rope_freqs.weight";  // part of the config

constexpr std::string_view kKB = "attn_k_b.weight", kVB = "attn_v_b.weight",
                           kKvB = "attn_kv_b.weight";

template <size_t n>
std::string_view find_name(const Name (&names)[n], std::string_view gguf) {
  for (const Name& name : names) {
    if (name.gguf == gguf) return name.hugging_face;
  }
  return {};
}

}  // namespace

GgufCheckpoint::GgufCheckpoint(const std::string& path)
    : model_(GgufModel::open(path)), config_(read_model_config(path)) {
  for (const auto& [name, entry] : model_->tensors()) add_tensor(name, *entry.info);
}

void GgufCheckpoint::add(std::string name, Source source) {
  const auto [it, inserted] = sources_.emplace(std::move(name), std::move(source));
  SHOAL_CHECK(inserted, "{} twice", it->first);  // each tensor has names of its own
}

void GgufCheckpoint::add_tensor(const std::string& name, const GgufTensor& tensor) {
  if (name == kRopeFactors) return;
  if (const auto of_model = find_name(kOfModel, name); !of_model.empty()) {
    return add(std::string(of_model), {.name = name});
  }
  constexpr std::string_view kBlock = "blk.";
  const size_t dot = name.find('.', kBlock.size());
  // What is not known keeps its name: check_all_known() refuses it.
  if (!name.starts_with(kBlock) || dot == name.npos) return add(name, {.name = name});
  const std::string block = name.substr(0, dot + 1);
  const std::string rest = name.substr(dot + 1);
  const std::string layer = "model.layers." + name.substr(kBlock.size(), dot + 1 - kBlock.size());
  for (const char* part : {"gate", "up", "down", "gate_up"}) {
    if (rest == fmt::format("ffn_{}_exps.weight", part)) {
      return add_experts(layer, part, name, tensor);
    }
  }
  const auto kv_b = model_->find(block + std::string(kKvB));
  if (rest == kKB || rest == kVB) {
    const bool both = model_->find(block + std::string(kKB)) != nullptr &&
                      model_->find(block + std::string(kVB)) != nullptr;
    if (!both) return add(name, {.name = name});
    if (kv_b != nullptr || rest == kVB) return;  // files of some weeks hold all three
    return add(layer + "self_attn.kv_b_proj.weight",
               {.name = name, .v_b = block + std::string(kVB)});
  }
  const auto of_layer = find_name(kOfLayer, rest);
  if (of_layer.empty()) return add(name, {.name = name});
  Source source{.name = name};
  if (config_.architecture == Architecture::kLlama) {
    if (rest.starts_with("attn_q.")) source.heads = config_.num_attention_heads;
    if (rest.starts_with("attn_k.")) source.heads = config_.num_key_value_heads;
  }
  source.as_f32 = rest == "ffn_gate_inp.weight" && !is_plain(*tensor.type);
  add(layer + std::string(of_layer), std::move(source));
}

void GgufCheckpoint::add_experts(const std::string& layer, const std::string& part,
                                 const std::string& name, const GgufTensor& tensor) {
  if (tensor.shape.size() != 3 || tensor.shape[0] != config_.n_routed_experts) {
    throw_invalid("{}: tensor {} is {}, should be a matrix for each of the {} experts", path(),
                  in_quotes(name), tensor.shape_string(), config_.n_routed_experts);
  }
  for (int64_t expert = 0; expert < config_.n_routed_experts; ++expert) {
    const std::string prefix = fmt::format("{}mlp.experts.{}.", layer, expert);
    if (part == "gate_up") {
      add(prefix + "gate_proj.weight", {.name = name, .expert = expert, .half = 0});
      add(prefix + "up_proj.weight", {.name = name, .expert = expert, .half = 1});
    } else {
      add(prefix + part + "_proj.weight", {.name = name, .expert = expert});
    }
  }
}

std::vector<std::string> GgufCheckpoint::names() const {
  std::vector<std::string> names;
  names.reserve(sources_.size());
  for (const auto& [name, source] : sources_) names.push_back(name);
  return names;
}

const GgufCheckpoint::Source& GgufCheckpoint::require(const std::string& name,
                                                      const std::vector<int64_t>& shape) const {
  const auto it = sources_.find(name);
  if (it == sources_.end()) {
    throw_invalid("{}: the tensor that stands for {} of shape [{}] is missing", path(),
                  in_quotes(name), fmt::join(shape, ", "));
  }
  return it->second;
}

GgufRows GgufCheckpoint::rows(const std::string& name, const std::vector<int64_t>& shape) const {
  const GgufModel::Entry& entry = *model_->find(name);
  if (entry.info->shape != shape) {
    throw_invalid("{}: tensor {} is {}, the metadata asks for [{}]", entry.file->path(),
                  in_quotes(name), entry.info->shape_string(), fmt::join(shape, ", "));
  }
  GgufRows rows{.name = name,
                .file = entry.file,
                .type = entry.info->type,
                .begin = entry.info->begin,
                .n = 1,
                .k = shape.back()};
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows.n *= shape[i];
  return rows;
}

std::unique_ptr<StoredWeight> GgufCheckpoint::matrix(const std::string& name, int64_t n,
                                                     int64_t k) const {
  const Source& source = require(name + ".weight", {n, k});
  if (!source.v_b.empty()) return kv_b(source, n, k);
  GgufRows matrix;
  if (source.expert < 0) {
    matrix = rows(source.name, {n, k});
  } else {
    const int64_t all = source.half < 0 ? n : 2 * n;
    matrix = rows(source.name, {config_.n_routed_experts, all, k});
    matrix.n = n;
    matrix.begin +=
        static_cast<uint64_t>(source.expert * all + std::max<int64_t>(source.half, 0) * n) *
        matrix.row_bytes();
  }
  if (source.heads > 0) {
    if (n % (2 * source.heads) != 0) {
      throw_invalid("{}: its {} rows are not {} heads of an even size", matrix.where(), n,
                    source.heads);
    }
    matrix.permuted_half = n / source.heads / 2;
  }
  return source.as_f32 ? make_gguf_f32(std::move(matrix)) : make_gguf_weight(std::move(matrix));
}

std::unique_ptr<StoredWeight> GgufCheckpoint::kv_b(const Source& source, int64_t n,
                                                   int64_t k) const {
  const int64_t heads = config_.num_attention_heads;
  const int64_t nope = config_.qk_nope_head_dim, v = config_.v_head_dim;
  SHOAL_CHECK(n == heads * (nope + v), "kv_b_proj of {} rows", n);
  return make_gguf_kv_b(rows(source.name, {heads, k, nope}), rows(source.v_b, {heads, v, k}),
                        heads);
}

std::unique_ptr<StoredWeight> GgufCheckpoint::vector(const std::string& name, int64_t n) const {
  const Source& source = require(name, {n});
  GgufRows vector = rows(source.name, {n});
  if (!is_plain(*vector.type)) {
    throw_invalid("{} has the type {}; a vector is F32, F16 or BF16", vector.where(),
                  vector.type->name);
  }
  vector.n = n;
  vector.k = 1;
  return make_gguf_weight(std::move(vector));
}

std::vector<Checkpoint::FileTensor> GgufCheckpoint::file_tensors() const {
  std::vector<FileTensor> tensors;
  for (const auto& [name, entry] : model_->tensors()) {
    tensors.push_back({.name = name,
                       .type = std::string(entry.info->type->name),
                       .shape = entry.info->shape,
                       .bytes = entry.info->end - entry.info->begin,
                       .file = std::filesystem::path(entry.file->path()).filename().string()});
  }
  return tensors;
}

std::string GgufCheckpoint::quantization() const {
  std::set<std::string_view> types;
  for (const auto& [name, entry] : model_->tensors()) types.insert(entry.info->type->name);
  return fmt::format("GGUF: {}", fmt::join(types, ", "));
}

}  // namespace shoal
