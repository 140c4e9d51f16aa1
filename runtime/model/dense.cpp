// The dense models that DeepSeek-R1 was distilled into: Qwen2 (with q, k, v biases) and Llama.
#include "runtime/model/decoder.h"
#include "runtime/model/gqa_attention.h"
#include "runtime/model/mtp.h"

namespace shoal {

std::unique_ptr<Model> make_dense(const ModelConfig& config, const ParallelLayout& layout,
                                  const ModelOptions& options, WeightSource& source,
                                  ExecContext& ctx) {
  const Range heads = attention_heads_of(config, layout);
  Tensor rope_table =
      load_rope_table(config, options, config.head_dim, source, ctx.workspace.device());
  std::vector<DecoderLayer> layers;
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string name = "model.layers." + std::to_string(i);
    const Range hidden{0, config.hidden_size};
    DecoderLayer layer;
    layer.input_layernorm = source.vector(name + ".input_layernorm.weight", hidden.end, hidden);
    layer.self_attn =
        std::make_unique<GqaAttention>(config, name + ".self_attn", heads, rope_table, source);
    layer.post_attention_layernorm =
        source.vector(name + ".post_attention_layernorm.weight", hidden.end, hidden);
    layer.mlp = std::make_unique<DenseFeedForward>(config, layout, name + ".mlp", source);
    layers.push_back(std::move(layer));
  }
  return std::make_unique<Decoder>(config, layout, source, std::move(layers), /*mtp=*/nullptr);
}

}  // namespace shoal
