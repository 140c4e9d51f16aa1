// Metadata as ModelConfig, tensors under Hugging Face's names; what is not supported is refused by
// key.
#include "runtime/checkpoint/gguf_config.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/tensor_plan.h"
#include "runtime/model/model_config.h"
#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/runtime/checkpoint/gguf_writer.h"

namespace shoal {
namespace {

using test::GgufWriter;
using test::TempDir;

std::string gguf_file(const std::string& name) {
  return fmt::format("{}/tests/runtime/checkpoint/gguf_data/{}.gguf", SHOAL_SOURCE_DIR, name);
}

TEST_CASE("the config of a GGUF file is that of the checkpoint it was made from") {
  for (const std::string name : {"llama3", "qwen2-tied", "v2-lite", "v3-negative-bias"}) {
    const ModelConfig a = read_model_config(gguf_file(name));
    const ModelConfig b =
        read_model_config(fmt::format("{}/tests/golden/data/{}", SHOAL_SOURCE_DIR, name));
    INFO(name);
    CHECK(a.architecture == b.architecture);
    CHECK(a.hidden_size == b.hidden_size);
    CHECK(a.num_hidden_layers == b.num_hidden_layers);
    CHECK(a.num_attention_heads == b.num_attention_heads);
    CHECK(a.num_key_value_heads == b.num_key_value_heads);
    CHECK(a.head_dim == b.head_dim);
    CHECK(a.vocab_size == b.vocab_size);
    CHECK(a.intermediate_size == b.intermediate_size);
    CHECK(a.max_position_embeddings == b.max_position_embeddings);
    CHECK(a.rms_norm_eps == b.rms_norm_eps);
    CHECK(a.rope_theta == b.rope_theta);
    CHECK(a.tie_word_embeddings == b.tie_word_embeddings);
    CHECK(a.attention_bias == b.attention_bias);
    CHECK(a.q_lora_rank == b.q_lora_rank);
    CHECK(a.kv_lora_rank == b.kv_lora_rank);
    CHECK(a.qk_nope_head_dim == b.qk_nope_head_dim);
    CHECK(a.qk_rope_head_dim == b.qk_rope_head_dim);
    CHECK(a.v_head_dim == b.v_head_dim);
    CHECK(a.n_routed_experts == b.n_routed_experts);
    CHECK(a.n_shared_experts == b.n_shared_experts);
    CHECK(a.moe_intermediate_size == b.moe_intermediate_size);
    CHECK(a.first_k_dense_replace == b.first_k_dense_replace);
    CHECK(a.num_nextn_predict_layers == b.num_nextn_predict_layers);
    CHECK(a.router.kind == b.router.kind);
    CHECK(a.router.top_k == b.router.top_k);
    CHECK(a.router.n_group == b.router.n_group);
    CHECK(a.router.topk_group == b.router.topk_group);
    CHECK(a.router.norm_topk_prob == b.router.norm_topk_prob);
    CHECK(a.router.routed_scaling_factor == b.router.routed_scaling_factor);
    CHECK(a.bos_token_id == b.bos_token_id);
    CHECK(a.eos_token_ids == std::vector<int32_t>{1});
    if (name == "llama3") {
      CHECK(a.rope_scaling.kind == RopeScaling::Kind::kFactors);
      CHECK(a.rope_scaling.factors.size() == 7);
      CHECK(a.rope_scaling.factors.front() >= 1);
      CHECK(a.rope_scaling.factors.back() == 8);
      continue;
    }
    CHECK(a.rope_scaling.kind == b.rope_scaling.kind);
    CHECK(a.rope_scaling.factor == b.rope_scaling.factor);
    if (b.rope_scaling.kind == RopeScaling::Kind::kNone) continue;
    CHECK(a.rope_scaling.original_max_position_embeddings ==
          b.rope_scaling.original_max_position_embeddings);
    CHECK(a.rope_scaling.beta_fast == b.rope_scaling.beta_fast);
    CHECK(a.rope_scaling.beta_slow == b.rope_scaling.beta_slow);
    CHECK(a.rope_scaling.mscale == b.rope_scaling.mscale);
    CHECK(a.rope_scaling.mscale_all_dim == b.rope_scaling.mscale_all_dim);
  }
}

TEST_CASE("every tensor of a GGUF file has its place in the plan") {
  for (const std::string name : {"llama3", "qwen2-tied", "v2-lite", "v3-negative-bias"}) {
    const ModelConfig config = read_model_config(gguf_file(name));
    const auto checkpoint = Checkpoint::open(gguf_file(name));
    INFO(name);
    CHECK_NOTHROW(check_all_known(*checkpoint, config));
    uint64_t bytes = 0;
    for (const PlannedTensor& tensor : tensor_plan(config)) {
      const auto weight = planned_weight(*checkpoint, tensor);
      bytes += weight->stored_bytes({0, weight->n()}, {0, weight->k()});
    }
    // All but the rope factors.
    CHECK(checkpoint->total_bytes() - bytes == (name == "llama3" ? 7 * 4 : 0));
    CHECK(checkpoint->quantization().starts_with("GGUF: "));
    CHECK(checkpoint->file_tensors().size() > 10);
  }
}

// A llama of one layer that reads, to be spoilt.
struct Llama {
  std::string architecture = "llama";
  GgufWriter keys;
  bool output = true;
  std::vector<float> rope_freqs;
  std::string skip;  // a key, or a tensor, that is left out

  std::string bytes() {
    const auto u32 = [&](const std::string& name, uint32_t value) {
      if (skip != name) keys.u32(architecture + "." + name, value);
    };
    if (skip != "general.architecture") keys.text("general.architecture", architecture);
    u32("embedding_length", 8);
    u32("block_count", 1);
    u32("attention.head_count", 2);
    u32("feed_forward_length", 12);
    u32("context_length", 64);
    if (skip != "eps") keys.f32(architecture + ".attention.layer_norm_rms_epsilon", 1e-5f);
    const auto tensor = [&](const std::string& name, std::vector<uint64_t> dims) {
      uint64_t count = 1;
      for (const uint64_t dim : dims) count *= dim;
      if (skip != name) keys.f32_tensor(name, dims, std::vector<float>(count, 0.5f));
    };
    tensor("token_embd.weight", {8, 10});
    tensor("output_norm.weight", {8});
    if (output) tensor("output.weight", {8, 10});
    for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output"}) {
      tensor(fmt::format("blk.0.{}.weight", name), {8, 8});
    }
    for (const char* name : {"ffn_gate", "ffn_up"}) {
      tensor(fmt::format("blk.0.{}.weight", name), {8, 12});
    }
    tensor("blk.0.ffn_down.weight", {12, 8});
    tensor("blk.0.attn_norm.weight", {8});
    tensor("blk.0.ffn_norm.weight", {8});
    if (!rope_freqs.empty()) keys.f32_tensor("rope_freqs.weight", {rope_freqs.size()}, rope_freqs);
    return keys.bytes();
  }
};

// Writes the file and reads all that a rank reads but the values.
ModelConfig read(Llama llama) {
  const TempDir dir;
  dir.write("x.gguf", llama.bytes());
  const ModelConfig config = read_model_config(dir.path("x.gguf"));
  const auto checkpoint = Checkpoint::open(dir.path("x.gguf"));
  check_all_known(*checkpoint, config);
  for (const PlannedTensor& tensor : tensor_plan(config)) planned_weight(*checkpoint, tensor);
  return config;
}

ModelConfig read_with(const std::function<void(Llama&)>& spoil) {
  Llama llama;
  spoil(llama);
  return read(llama);
}

TEST_CASE("a small llama, and what may be said otherwise") {
  const ModelConfig config = read({});
  CHECK(config.num_key_value_heads == 2);  // as many as heads where the file does not say
  CHECK(config.head_dim == 4);
  CHECK_FALSE(config.tie_word_embeddings);
  CHECK(config.torch_dtype == DType::kF32);
  CHECK(config.eos_token_ids.empty());
  CHECK(read_with([](Llama& l) { l.output = false; }).tie_word_embeddings);
  CHECK(read_with([](Llama& l) {
          l.keys.i32s("llama.attention.head_count_kv", {2});
        }).num_key_value_heads == 2);
  const auto linear = read_with([](Llama& l) {
    l.keys.text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4);
  });
  CHECK(linear.rope_scaling.kind == RopeScaling::Kind::kLinear);
  CHECK(linear.rope_scaling.factor == 4);
  const auto factors = read_with([](Llama& l) { l.rope_freqs = {1, 4}; });
  CHECK(factors.rope_scaling.factors == std::vector<float>{1, 4});
  const auto ends = read_with([](Llama& l) {
    l.keys.u32("tokenizer.ggml.eos_token_id", 3).u32("tokenizer.ggml.eot_token_id", 5);
  });
  CHECK(ends.eos_token_ids == std::vector<int32_t>{3, 5});
  const auto none = read_with([](Llama& l) {
    l.keys.i32("tokenizer.ggml.bos_token_id", -1).u32("tokenizer.ggml.eos_token_id", 0xffffffffu);
  });
  CHECK_FALSE(none.bos_token_id);
  CHECK(none.eos_token_ids.empty());
  const auto named = read_with([](Llama& l) {
    l.keys.u32("tokenizer.ggml.eos_token_id", 3);
    l.keys.texts("tokenizer.ggml.tokens", {"a", "<|eot_id|>", "b", "</s>"});
  });
  CHECK(named.eos_token_ids == std::vector<int32_t>{3, 1});
}

// A deepseek2 of one layer of two experts and a multi-token-prediction layer; element i of a tensor
// is i.
GgufWriter deepseek() {
  GgufWriter w;
  const std::string a = "deepseek2.";
  w.text("general.architecture", "deepseek2");
  w.u32(a + "embedding_length", 8).u32(a + "block_count", 2).u32(a + "nextn_predict_layers", 1);
  w.u32(a + "attention.head_count", 2).u32(a + "feed_forward_length", 12);
  w.u32(a + "context_length", 64).f32(a + "attention.layer_norm_rms_epsilon", 1e-6f);
  w.u32(a + "attention.kv_lora_rank", 6).u32(a + "rope.dimension_count", 2);
  w.u32(a + "attention.key_length", 8).u32(a + "attention.value_length", 6);
  w.u32(a + "attention.key_length_mla", 5).u32(a + "attention.value_length_mla", 4);
  w.u32(a + "expert_count", 2).u32(a + "expert_used_count", 1).u32(a + "expert_shared_count", 1);
  w.i32s(a + "expert_feed_forward_length", {3, 3}).u32(a + "expert_gating_func", 2);
  w.f32(a + "expert_weights_scale", 2.5f).flag(a + "expert_weights_norm", true);
  const auto tensor = [&](const std::string& name, std::vector<uint64_t> dims) {
    uint64_t count = 1;
    for (const uint64_t dim : dims) count *= dim;
    std::vector<float> values(count);
    std::iota(values.begin(), values.end(), 0.0f);
    w.f32_tensor(name, dims, values);
  };
  tensor("token_embd.weight", {8, 10});
  tensor("output_norm.weight", {8});
  for (const std::string p : {"blk.0.", "blk.1."}) {
    tensor(p + "attn_norm.weight", {8});
    tensor(p + "ffn_norm.weight", {8});
    tensor(p + "attn_q.weight", {8, 10});
    tensor(p + "attn_kv_a_mqa.weight", {8, 8});
    tensor(p + "attn_kv_a_norm.weight", {6});
    tensor(p + "attn_kv_b.weight", {6, 14});
    if (p == "blk.1.") {  // as files of some weeks have: the whole and its parts
      tensor(p + "attn_k_b.weight", {3, 6, 2});
      tensor(p + "attn_v_b.weight", {6, 4, 2});
    }
    tensor(p + "attn_output.weight", {8, 8});
    tensor(p + "ffn_gate_inp.weight", {8, 2});
    tensor(p + "exp_probs_b.bias", {2});
    tensor(p + "ffn_gate_up_exps.weight", {8, 6, 2});
    tensor(p + "ffn_down_exps.weight", {3, 8, 2});
    tensor(p + "ffn_gate_shexp.weight", {8, 3});
    tensor(p + "ffn_up_shexp.weight", {8, 3});
    tensor(p + "ffn_down_shexp.weight", {3, 8});
  }
  tensor("blk.1.nextn.eh_proj.weight", {16, 8});
  for (const char* name : {"enorm", "hnorm", "shared_head_norm"}) {
    tensor(fmt::format("blk.1.nextn.{}.weight", name), {8});
  }
  tensor("blk.1.nextn.embed_tokens.weight", {8, 10});
  tensor("blk.1.nextn.shared_head_head.weight", {8, 10});
  return w;
}

TEST_CASE("a small deepseek2: fused and stacked experts, kv_b_proj whole, a prediction layer") {
  const TempDir dir;
  dir.write("x.gguf", deepseek().bytes());
  const ModelConfig config = read_model_config(dir.path("x.gguf"));
  CHECK(config.architecture == Architecture::kDeepseekV3);
  CHECK(config.num_hidden_layers == 1);
  CHECK(config.num_nextn_predict_layers == 1);
  CHECK(config.qk_nope_head_dim == 3);
  CHECK(config.v_head_dim == 4);
  CHECK(config.router.n_group == 1);  // where the file says nothing of groups
  const auto checkpoint = Checkpoint::open(dir.path("x.gguf"));
  check_all_known(*checkpoint, config);
  for (const PlannedTensor& tensor : tensor_plan(config)) planned_weight(*checkpoint, tensor);
  const auto first = [&](const std::string& name, int64_t n, int64_t k) {
    float value = -1;
    checkpoint->matrix(name, n, k)
        ->read({0, 1}, {0, 1}, reinterpret_cast<std::byte*>(&value), nullptr, nullptr);
    return value;
  };
  const std::string mlp = "model.layers.0.mlp.";
  CHECK(first(mlp + "experts.0.gate_proj", 3, 8) == 0);
  CHECK(first(mlp + "experts.0.up_proj", 3, 8) == 3 * 8);
  CHECK(first(mlp + "experts.1.gate_proj", 3, 8) == 6 * 8);
  CHECK(first(mlp + "experts.1.up_proj", 3, 8) == 9 * 8);
  CHECK(first(mlp + "experts.1.down_proj", 8, 3) == 8 * 3);
  INVALID(checkpoint->matrix(mlp + "experts.2.down_proj", 8, 3), "experts.2.down_proj", "missing");
  INVALID(checkpoint->matrix(mlp + "experts.1.down_proj", 8, 4), "ffn_down_exps.weight",
          "F32[2, 8, 3]", "[2, 8, 4]");

  GgufWriter split = deepseek();
  split.f32_tensor("blk.0.attn_k_b.weight", {3, 6, 2}, std::vector<float>(36));
  dir.write("y.gguf", split.bytes());  // k_b without v_b
  const auto half = Checkpoint::open(dir.path("y.gguf"));
  INVALID(check_all_known(*half, config), "blk.0.attn_k_b.weight");
}

TEST_CASE("GGUF metadata that are refused") {
  const auto key = [](const std::string& name, auto value) {
    return [=](Llama& l) {
      if constexpr (std::is_same_v<decltype(value), const char*>) {
        l.keys.text(name, value);
      } else if constexpr (std::is_same_v<decltype(value), float>) {
        l.keys.f32(name, value);
      } else if constexpr (std::is_same_v<decltype(value), bool>) {
        l.keys.flag(name, value);
      } else {
        l.keys.i32(name, value);
      }
    };
  };
  const auto without = [](const std::string& name) { return [=](Llama& l) { l.skip = name; }; };
  INVALID(read_with([](Llama& l) { l.architecture = "gemma"; }), "x.gguf", "general.architecture",
          "gemma", "deepseek2, qwen2 and llama");
  INVALID(read_with(without("general.architecture")), "general.architecture", "missing");
  INVALID(read_with(key("general.type", "mmproj")), "general.type", "mmproj");
  for (const char* name : {"embedding_length", "block_count", "attention.head_count",
                           "feed_forward_length", "context_length"}) {
    INVALID(read_with(without(name)), std::string("llama.") + name, "missing");
  }
  INVALID(read_with(without("eps")), "llama.attention.layer_norm_rms_epsilon", "missing");
  INVALID(read_with(without("token_embd.weight")), "token_embd.weight", "missing");
  INVALID(read_with(without("blk.0.attn_k.weight")), "self_attn.k_proj.weight", "missing");
  INVALID(read_with(key("llama.attention.clamp_kqv", 1.0f)), "llama.attention.clamp_kqv",
          "not known");
  INVALID(read_with(key("llama.expert_count", 8)), "llama.expert_count", "8", "only 0");
  INVALID(read_with(key("llama.attention.causal", false)), "llama.attention.causal", "only 1");
  INVALID(read_with(key("llama.rope.scaling.type", "longrope")), "longrope", "linear and yarn");
  INVALID(read_with(key("llama.rope.freq_base", std::numeric_limits<float>::quiet_NaN())),
          "llama.rope.freq_base", "finite");
  INVALID(read_with(key("llama.rope.dimension_count", 2)), "rope.dimension_count", "should be 4");
  INVALID(read_with(key("llama.attention.value_length", 2)), "attention.value_length",
          "should be 4");
  INVALID(read_with(key("llama.vocab_size", 11)), "token_embd.weight", "F32[10, 8]", "[11, 8]");
  INVALID(read_with(key("llama.vocab_size", -1)), "vocab_size", "-1");
  INVALID(read_with(key("tokenizer.ggml.eos_token_id", 10)), "eos_token_id", "10");
  INVALID(read_with(key("llama.attention.head_count_kv", 3)), "num_key_value_heads", "3");
  INVALID(read_with([](Llama& l) {
            l.keys.i32s("llama.attention.head_count_kv", {2, 1});
          }),
          "head_count_kv", "layers that differ");
  INVALID(read_with([](Llama& l) { l.rope_freqs = {1}; }), "rope_freqs.weight", "F32[2]");
  INVALID(read_with([](Llama& l) { l.rope_freqs = {1, 0}; }), "rope_freqs.weight", "positive");
  INVALID(read_with([](Llama& l) { l.rope_freqs = {1, NAN}; }), "rope_freqs.weight", "positive");
  INVALID(read_with([](Llama& l) {
            l.rope_freqs = {1, 2};
            l.keys.text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4);
          }),
          "rope_freqs.weight", "rope.scaling.type");
  INVALID(read_with([](Llama& l) {
            l.keys.f32_tensor("blk.0.attn_q_norm.weight", {4}, {1, 1, 1, 1});
          }),
          "blk.0.attn_q_norm.weight", "no use");
  INVALID(read_with([](Llama& l) {
            l.keys.f32_tensor("blk.0.ffn_up_exps.weight", {1, 1, 1}, {1});
          }),
          "blk.0.ffn_up_exps.weight", "0 experts");
  INVALID(read_with([](Llama& l) {
            l.skip = "blk.0.ffn_norm.weight";
            l.keys.tensor("blk.0.ffn_norm.weight", {32}, 8, std::string(34, '\0'));
          }),
          "blk.0.ffn_norm.weight");
}

}  // namespace
}  // namespace shoal
