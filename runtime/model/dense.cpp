// The dense models that DeepSeek-R1 was distilled into: Qwen2 (with q, k, v biases) and Llama.
#include "runtime/model/decoder.h"
#include "runtime/model/gqa_attention.h"
#include "runtime/model/mtp.h"

namespace shoal {

namespace {

class DenseLayers : public LayerLoader {
 public:
  DenseLayers(const ModelConfig& config, const ParallelLayout& layout, const ModelOptions& options,
              WeightSource& source, ExecContext& ctx)
      : config_(config),
        layout_(layout),
        heads_(attention_heads_of(config, layout)),
        rope_table_(
            load_rope_table(config, options, config.head_dim, source, ctx.workspace.device())) {}

  DecoderLayer load(int64_t index, WeightSource& source) override {
    const std::string name = "model.layers." + std::to_string(index);
    const Range hidden{0, config_.hidden_size};
    DecoderLayer layer;
    layer.input_layernorm = source.vector(name + ".input_layernorm.weight", hidden.end, hidden);
    layer.self_attn =
        std::make_unique<GqaAttention>(config_, name + ".self_attn", heads_, rope_table_, source);
    layer.post_attention_layernorm =
        source.vector(name + ".post_attention_layernorm.weight", hidden.end, hidden);
    layer.mlp = std::make_unique<DenseFeedForward>(config_, layout_, name + ".mlp", source);
    return layer;
  }

 private:
  const ModelConfig& config_;
  const ParallelLayout& layout_;
  const Range heads_;
  const Tensor rope_table_;  // [max_model_len, head_dim]
};

}  // namespace

std::unique_ptr<LayerLoader> make_dense_layers(const ModelConfig& config, const ParallelLayout& layout,
                                               const ModelOptions& options, WeightSource& source,
                                               ExecContext& ctx) {
  return std::make_unique<DenseLayers>(config, layout, options, source, ctx);
}

std::unique_ptr<Model> make_dense(const ModelConfig& config, const ParallelLayout& layout,
                                  const ModelOptions& options, WeightSource& source,
                                  ExecContext& ctx) {
  DenseLayers loader(config, layout, options, source, ctx);
  std::vector<DecoderLayer> layers;
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) layers.push_back(loader.load(i, source));
  return std::make_unique<Decoder>(config, layout, source, std::move(layers), /*mtp=*/nullptr);
}

}  // namespace shoal
