// DeepSeek-V2 (arXiv 2405.04434) and V3 / R1 (arXiv 2412.19437): MLA, leading dense layers, then
// mixtures of experts. The two differ in the router, which config.json names.
#include "runtime/model/decoder.h"
#include "runtime/model/mla_attention.h"
#include "runtime/model/mtp.h"

namespace shoal {
namespace {

class DeepseekLayers : public LayerLoader {
 public:
  DeepseekLayers(const ModelConfig& config, const ParallelLayout& layout, const ModelOptions& options,
                 WeightSource& source, ExecContext& ctx)
      : config_(config),
        layout_(layout),
        options_(options),
        ctx_(ctx),
        heads_(attention_heads_of(config, layout)),
        rope_table_(load_rope_table(config, options, config.qk_rope_head_dim, source,
                                    ctx.workspace.device())) {}

  DecoderLayer load(int64_t index, WeightSource& source) override {
    const std::string name = "model.layers." + std::to_string(index);
    const Range hidden{0, config_.hidden_size};
    DecoderLayer layer;
    layer.input_layernorm = source.vector(name + ".input_layernorm.weight", hidden.end, hidden);
    layer.self_attn = std::make_unique<MlaAttention>(config_, options_, name + ".self_attn", heads_,
                                                     rope_table_, source, ctx_);
    layer.post_attention_layernorm =
        source.vector(name + ".post_attention_layernorm.weight", hidden.end, hidden);
    if (config_.is_moe_layer(index)) {
      const bool main = index < config_.num_hidden_layers;
      layer.mlp = std::make_unique<MoeFeedForward>(config_, layout_, name + ".mlp", source,
                                                   main ? options_.offload : nullptr,
                                                   main && options_.count_experts);
    } else {
      layer.mlp = std::make_unique<DenseFeedForward>(config_, layout_, name + ".mlp", source);
    }
    return layer;
  }

 private:
  const ModelConfig& config_;
  const ParallelLayout& layout_;
  const ModelOptions& options_;
  ExecContext& ctx_;
  const Range heads_;
  const Tensor rope_table_;  // [max_model_len, qk_rope]
};

}  // namespace

std::unique_ptr<LayerLoader> make_deepseek_layers(const ModelConfig& config,
                                                  const ParallelLayout& layout,
                                                  const ModelOptions& options, WeightSource& source,
                                                  ExecContext& ctx) {
  return std::make_unique<DeepseekLayers>(config, layout, options, source, ctx);
}

std::unique_ptr<Model> make_deepseek(const ModelConfig& config, const ParallelLayout& layout,
                                     const ModelOptions& options, WeightSource& source,
                                     ExecContext& ctx) {
  if (config.n_routed_experts > 0 && layout.size > config.n_routed_experts) {
    throw_invalid("--tensor-parallel-size {}: the model has {} routed experts; use at most that many "
                  "ranks",
                  layout.size, config.n_routed_experts);
  }
  DeepseekLayers loader(config, layout, options, source, ctx);
  std::vector<DecoderLayer> layers;
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) layers.push_back(loader.load(i, source));
  std::unique_ptr<MtpModule> mtp;
  if (options.load_mtp && config.num_nextn_predict_layers > 0) {
    mtp = std::make_unique<MtpModule>(config, layout, source, loader.load(config.num_hidden_layers, source));
  }
  return std::make_unique<Decoder>(config, layout, source, std::move(layers), std::move(mtp));
}

}  // namespace shoal
