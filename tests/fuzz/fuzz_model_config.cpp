// config.json and generation_config.json: what is accepted satisfies what the models divide by and
// allocate from.
#include <cstdlib>

#include "kernels/base/error.h"
#include "runtime/cache/paged_kv_cache.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void check(const shoal::ModelConfig& c) {
  require(c.hidden_size > 0 && c.num_hidden_layers > 0 && c.num_attention_heads > 0 &&
          c.vocab_size > 0);
  require(c.intermediate_size > 0 && c.max_position_embeddings > 0);
  require(c.rope_theta > 1 && c.rope_scaling.factor >= 1);
  require(c.quantization.block_rows > 0 && c.quantization.block_cols > 0);
  if (c.is_mla()) {
    require(c.qk_rope_head_dim > 0 && c.qk_rope_head_dim % 2 == 0 && c.v_head_dim > 0);
    require(c.n_routed_experts % c.router.n_group == 0 && c.router.topk_group <= c.router.n_group);
    require(c.router.top_k <= c.n_routed_experts / c.router.n_group * c.router.topk_group);
    require(c.moe_layer_freq > 0 && c.n_shared_experts > 0);
  } else {
    require(c.num_key_value_heads > 0 && c.num_attention_heads % c.num_key_value_heads == 0);
    require(c.head_dim > 0 && c.head_dim % 2 == 0);
  }
  for (const int32_t id : c.eos_token_ids) require(0 <= id && id < c.vocab_size);
  require(shoal::kv_bytes_per_token_layer(c, c.num_key_value_heads, shoal::DType::kI8) > 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    check(shoal::parse_model_config(text, "fuzz"));
  } catch (const shoal::InvalidInput&) {
  }
  try {
    shoal::parse_generation_defaults(text, "fuzz", 1000);
  } catch (const shoal::InvalidInput&) {
  }
  return 0;
}
