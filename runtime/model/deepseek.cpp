// DeepSeek-V2 (arXiv 2405.04434) and V3 / R1 (arXiv 2412.19437): MLA, leading dense layers, then
// mixtures of experts. The two differ in the router, which config.json names.
#include "runtime/model/decoder.h"
#include "runtime/model/mla_attention.h"

namespace shoal {

std::unique_ptr<Model> make_deepseek(const ModelConfig& config, const ParallelLayout& layout,
                                     const ModelOptions& options, WeightSource& source,
                                     ExecContext& ctx) {
  if (layout.size > config.n_routed_experts && config.n_routed_experts > 0) {
    throw_invalid("--tensor-parallel-size {}: the model has {} routed experts; use at most that many "
                  "ranks",
                  layout.size, config.n_routed_experts);
  }
  const Range heads = attention_heads_of(config, layout);
  Tensor rope_table = load_rope_table(config, options, config.qk_rope_head_dim, source,
                                      ctx.workspace.device());
  std::vector<DecoderLayer> layers;
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string name = "model.layers." + std::to_string(i);
    const Range hidden{0, config.hidden_size};
    DecoderLayer layer;
    layer.input_layernorm = source.vector(name + ".input_layernorm.weight", hidden.end, hidden);
    layer.self_attn = std::make_unique<MlaAttention>(config, options, name + ".self_attn", heads,
                                                     rope_table, source, ctx);
    layer.post_attention_layernorm =
        source.vector(name + ".post_attention_layernorm.weight", hidden.end, hidden);
    if (config.is_moe_layer(i)) {
      layer.mlp = std::make_unique<MoeFeedForward>(config, layout, name + ".mlp", source);
    } else {
      layer.mlp = std::make_unique<DenseFeedForward>(config, layout, name + ".mlp", source);
    }
    layers.push_back(std::move(layer));
  }
  return std::make_unique<Decoder>(config, layout, source, std::move(layers),
                                   std::pair{config.kv_lora_rank + config.qk_rope_head_dim, int64_t{0}});
}

}  // namespace shoal
