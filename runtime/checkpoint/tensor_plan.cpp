#include "runtime/checkpoint/tensor_plan.h"

#include <set>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

class Planner {
 public:
  explicit Planner(const ModelConfig& config) : c_(config) {}

  std::vector<PlannedTensor> plan() {
    const int64_t layers = c_.num_hidden_layers;
    add({"model.embed_tokens.weight", TensorKind::kEmbedding, c_.vocab_size, c_.hidden_size,
         Cut::kVocabulary});
    for (int64_t i = 0; i < layers; ++i) layer(i);
    norm("model.norm.weight", c_.hidden_size);
    if (!c_.tie_word_embeddings) {
      add({"lm_head.weight", TensorKind::kHead, c_.vocab_size, c_.hidden_size, Cut::kVocabulary});
    }
    const size_t main_tensors = tensors_.size();
    for (int64_t i = 0; i < c_.num_nextn_predict_layers; ++i) mtp(layers + i);
    for (size_t i = main_tensors; i < tensors_.size(); ++i) tensors_[i].kind = TensorKind::kMtp;
    return std::move(tensors_);
  }

 private:
  void add(PlannedTensor tensor) { tensors_.push_back(std::move(tensor)); }
  void norm(const std::string& name, int64_t n) { add({name, TensorKind::kNorm, n}); }

  void heads(const std::string& name, int64_t per_head, int64_t k, Cut cut = Cut::kHeads) {
    const int64_t count = cut == Cut::kHeads ? c_.num_attention_heads : c_.num_key_value_heads;
    add({.name = name,
         .kind = TensorKind::kAttention,
         .n = count * per_head,
         .k = k,
         .cut = cut,
         .per_head = per_head});
  }
  void o_proj(const std::string& name, int64_t per_head) {
    add({.name = name,
         .kind = TensorKind::kAttention,
         .n = c_.hidden_size,
         .k = c_.num_attention_heads * per_head,
         .cut = Cut::kHeads,
         .cut_columns = true,
         .per_head = per_head});
  }

  void mla(const std::string& p) {
    const auto whole = [&](const char* name, int64_t n, int64_t k) {
      add({p + name, TensorKind::kAttention, n, k});
    };
    if (c_.q_lora_rank > 0) {
      whole("q_a_proj.weight", c_.q_lora_rank, c_.hidden_size);
      norm(p + "q_a_layernorm.weight", c_.q_lora_rank);
      heads(p + "q_b_proj.weight", c_.qk_head_dim(), c_.q_lora_rank);
    } else {
      heads(p + "q_proj.weight", c_.qk_head_dim(), c_.hidden_size);
    }
    whole("kv_a_proj_with_mqa.weight", c_.kv_lora_rank + c_.qk_rope_head_dim, c_.hidden_size);
    norm(p + "kv_a_layernorm.weight", c_.kv_lora_rank);
    heads(p + "kv_b_proj.weight", c_.qk_nope_head_dim + c_.v_head_dim, c_.kv_lora_rank);
    o_proj(p + "o_proj.weight", c_.v_head_dim);
  }

  void gqa(const std::string& p) {
    const struct {
      const char* name;
      Cut cut;
    } projections[] = {
        {"q_proj", Cut::kHeads}, {"k_proj", Cut::kKvHeads}, {"v_proj", Cut::kKvHeads}};
    for (const auto& [name, cut] : projections) {
      heads(p + name + ".weight", c_.head_dim, c_.hidden_size, cut);
      if (c_.attention_bias) heads(p + name + ".bias", c_.head_dim, 0, cut);
    }
    o_proj(p + "o_proj.weight", c_.head_dim);
  }

  void mlp(const std::string& p, TensorKind kind, int64_t inner, Cut cut, int64_t expert = 0) {
    for (const char* name : {"gate_proj.weight", "up_proj.weight"}) {
      add({.name = p + name,
           .kind = kind,
           .n = inner,
           .k = c_.hidden_size,
           .cut = cut,
           .expert = expert});
    }
    add({.name = p + "down_proj.weight",
         .kind = kind,
         .n = c_.hidden_size,
         .k = inner,
         .cut = cut,
         .cut_columns = true,
         .expert = expert});
  }

  void moe(const std::string& p) {
    add({.name = p + "gate.weight",
         .kind = TensorKind::kRouter,
         .n = c_.n_routed_experts,
         .k = c_.hidden_size,
         .keep_f32 = true});
    if (c_.router.kind == RouterKind::kNoauxTcSigmoid) {
      add({p + "gate.e_score_correction_bias", TensorKind::kRouter, c_.n_routed_experts});
    }
    for (int64_t e = 0; e < c_.n_routed_experts; ++e) {
      mlp(p + "experts." + std::to_string(e) + ".", TensorKind::kRoutedExperts,
          c_.moe_intermediate_size, Cut::kExpert, e);
    }
    if (c_.n_shared_experts > 0) {
      mlp(p + "shared_experts.", TensorKind::kSharedExperts,
          c_.n_shared_experts * c_.moe_intermediate_size, Cut::kColumns);
    }
  }

  void layer(int64_t index) {
    const std::string p = "model.layers." + std::to_string(index) + ".";
    norm(p + "input_layernorm.weight", c_.hidden_size);
    if (c_.is_mla()) {
      mla(p + "self_attn.");
    } else {
      gqa(p + "self_attn.");
    }
    norm(p + "post_attention_layernorm.weight", c_.hidden_size);
    if (c_.is_moe_layer(index)) {
      moe(p + "mlp.");
    } else {
      mlp(p + "mlp.", TensorKind::kDenseMlp, c_.intermediate_size, Cut::kColumns);
    }
  }

  void mtp(int64_t index) {
    const std::string p = "model.layers." + std::to_string(index) + ".";
    layer(index);
    add({p + "embed_tokens.weight", TensorKind::kEmbedding, c_.vocab_size, c_.hidden_size,
         Cut::kVocabulary});
    norm(p + "enorm.weight", c_.hidden_size);
    norm(p + "hnorm.weight", c_.hidden_size);
    add({p + "eh_proj.weight", TensorKind::kMtp, c_.hidden_size, 2 * c_.hidden_size});
    norm(p + "shared_head.norm.weight", c_.hidden_size);
    add({p + "shared_head.head.weight", TensorKind::kHead, c_.vocab_size, c_.hidden_size,
         Cut::kVocabulary});
  }

  const ModelConfig& c_;
  std::vector<PlannedTensor> tensors_;
};

Range scaled(Range range, int64_t factor) { return {range.begin * factor, range.end * factor}; }

// The part of the cut dimension, which has `total` elements.
Range held_part(const PlannedTensor& tensor, const ModelConfig& c, int64_t total, int ranks,
                int rank, bool dp_attention) {
  const Range heads = dp_attention ? Range{0, c.num_attention_heads}
                                   : split_evenly(c.num_attention_heads, ranks)[rank];
  switch (tensor.cut) {
    case Cut::kReplicated:
      return {0, total};
    case Cut::kHeads:
      return scaled(heads, tensor.per_head);
    case Cut::kKvHeads: {
      const int64_t group = c.num_attention_heads / c.num_key_value_heads;
      return scaled({heads.begin / group, (heads.end - 1) / group + 1}, tensor.per_head);
    }
    case Cut::kVocabulary:
      return split_evenly(total, ranks)[rank];
    case Cut::kColumns:
      return split_evenly(total, ranks, column_unit(total))[rank];
    case Cut::kExpert:
      return split_evenly(c.n_routed_experts, ranks)[rank].contains(tensor.expert) ? Range{0, total}
                                                                                   : Range{0, 0};
  }
  SHOAL_CHECK(false, "cut {}", static_cast<int>(tensor.cut));
}

}  // namespace

std::string_view tensor_kind_name(TensorKind kind) {
  switch (kind) {
    case TensorKind::kEmbedding:
      return "embedding";
    case TensorKind::kHead:
      return "lm_head";
    case TensorKind::kAttention:
      return "attention";
    case TensorKind::kNorm:
      return "norms";
    case TensorKind::kDenseMlp:
      return "dense MLP";
    case TensorKind::kRouter:
      return "router";
    case TensorKind::kSharedExperts:
      return "shared experts";
    case TensorKind::kRoutedExperts:
      return "routed experts";
    case TensorKind::kMtp:
      return "MTP layer";
  }
  SHOAL_CHECK(false, "kind {}", static_cast<int>(kind));
}

std::vector<PlannedTensor> tensor_plan(const ModelConfig& config) { return Planner(config).plan(); }

std::unique_ptr<StoredWeight> planned_weight(const Checkpoint& checkpoint,
                                             const PlannedTensor& tensor) {
  if (tensor.k == 0) return checkpoint.vector(tensor.name, tensor.n);
  constexpr size_t kSuffix = std::string_view(".weight").size();
  return checkpoint.matrix(tensor.name.substr(0, tensor.name.size() - kSuffix), tensor.n, tensor.k);
}

void check_all_known(const Checkpoint& checkpoint, const ModelConfig& config) {
  std::set<std::string_view> planned;
  const std::vector<PlannedTensor> plan = tensor_plan(config);
  for (const PlannedTensor& tensor : plan) planned.insert(tensor.name);

  constexpr std::string_view kInvFreq = ".rotary_emb.inv_freq";
  const auto known = [&](const std::string& name) {
    if (planned.count(name) > 0 || name.ends_with(kInvFreq)) return true;
    return config.tie_word_embeddings && name == "lm_head.weight";
  };
  constexpr int kShown = 3;
  std::string names;
  int64_t count = 0;
  for (const std::string& name : checkpoint.names()) {
    if (known(name)) continue;
    if (count++ < kShown) names += (names.empty() ? "" : ", ") + in_quotes(name);
  }
  if (count > 0) {
    throw_invalid("{}: {} tensor{} that config.json has no use for: {}{}", checkpoint.path(), count,
                  count == 1 ? "" : "s", names, count > kShown ? ", ..." : "");
  }
}

HeldSlice held_slice(const PlannedTensor& tensor, const ModelConfig& config, int ranks, int rank,
                     bool dp_attention) {
  const bool is_vector = tensor.k == 0;
  HeldSlice slice{{0, tensor.n}, {0, is_vector ? 1 : tensor.k}};
  Range& cut = tensor.cut_columns ? slice.cols : slice.rows;
  cut = held_part(tensor, config, cut.end, ranks, rank, dp_attention);
  return slice;
}

}  // namespace shoal
