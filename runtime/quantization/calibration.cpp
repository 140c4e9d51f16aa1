#include "runtime/quantization/calibration.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "kernels/base/error.h"
#include "parallel/embedding.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/checkpoint/checkpoint_source.h"
#include "runtime/engine/step_batch.h"
#include "runtime/model/decoder.h"
#include "runtime/model/gqa_attention.h"
#include "runtime/quantization/decode.h"
#include "runtime/quantization/decoded_weight.h"
#include "runtime/quantization/gptq.h"
#include "runtime/quantization/quantized_weight.h"
#include "runtime/quantization/recording_ops.h"

namespace shoal {
namespace {

constexpr int32_t kPageSize = 16;

// Remembers where each matrix went.
class RecordingSource : public WeightSource {
 public:
  explicit RecordingSource(CheckpointSource& source) : source_(source) {}
  bool has(const std::string& name) const override { return source_.has(name); }
  Weight matrix(const std::string& name, int64_t n, int64_t k, Range rows, Range cols,
                bool keep_f32) override {
    return weights[name] = source_.matrix(name, n, k, rows, cols, keep_f32);
  }
  Tensor vector(const std::string& name, int64_t n, Range range) override {
    return source_.vector(name, n, range);
  }
  Tensor allocate(const std::string& label, DType dtype,
                  std::initializer_list<int64_t> dims) override {
    return source_.allocate(label, dtype, dims);
  }
  std::map<std::string, Weight> weights;

 private:
  CheckpointSource& source_;
};

// "model.layers.12.mlp..." -> 12; -1 for others.
int64_t layer_of(const std::string& name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  int64_t layer = -1;
  std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  return layer;
}

// Matrices with the same input share its sum.
std::string input_of(const std::string& name) {
  constexpr std::pair<std::string_view, std::string_view> kShared[] = {
      {".up_proj", ".gate_proj"}, {".k_proj", ".q_proj"}, {".v_proj", ".q_proj"}};
  for (const auto& [suffix, first] : kShared) {
    if (name.ends_with(suffix)) {
      return name.substr(0, name.size() - suffix.size()) + std::string(first);
    }
  }
  return name;
}

}  // namespace

class Calibration::Runner {
 public:
  Runner(RankRuntime& rank, const std::string& dir, const std::vector<int32_t>& tokens, int window,
         const QuantizationScheme& scheme, int threads)
      : rank_(rank),
        scheme_(scheme),
        threads_(threads),
        config_(read_model_config(dir)),
        dtype_(config_.torch_dtype == DType::kF32 ? DType::kF32 : DType::kBF16),
        options_{.dtype = dtype_, .max_model_len = window},
        stored_(Checkpoint::open(dir)),
        decoded_(decode_checkpoint(Checkpoint::open(dir))),
        shared_source_(*decoded_, rank.device(), dtype_),
        ops_(rank.ops(), rank.device()),
        plain_(rank.exec(dtype_)),
        ctx_{ops_, plain_.workspace, plain_.comm, plain_.activation_dtype},
        layers_(make_layer_loader(config_, layout_, options_, shared_source_, ctx_)),
        cache_(rank.device(),
               KvCacheLayout(config_, local_kv_heads(config_, layout_), 1, dtype_, kPageSize),
               (window + kPageSize - 1) / kPageSize) {
    SHOAL_CHECK(rank.size() == 1, "calibration on {} ranks", rank.size());
    if (window > config_.max_position_embeddings) {
      throw_invalid(
          "--calibration: windows of {} tokens; the model's max_position_embeddings is {}", window,
          config_.max_position_embeddings);
    }
    for (const int32_t token : tokens) {
      if (token < 0 || token >= config_.vocab_size) {
        throw_invalid("--calibration: the text gives token {}; the model's vocabulary has {}",
                      token, config_.vocab_size);
      }
    }
    for (size_t begin = 0; begin < tokens.size(); begin += window) {
      const size_t end = std::min(begin + window, tokens.size());
      windows_.push_back({.tokens{tokens.begin() + static_cast<int64_t>(begin),
                                  tokens.begin() + static_cast<int64_t>(end)}});
    }
    embed();
  }

  int64_t num_layers() const { return config_.num_hidden_layers; }

  // `name` of a layer that runs, quantised. Takes the layers before it first.
  std::unique_ptr<StoredWeight> take(const std::string& name) {
    while (layer_ < layer_of(name)) next_layer();
    const auto it = quantized_.find(name);
    SHOAL_CHECK(it != quantized_.end(), "{} out of order, or asked for twice", name);
    std::unique_ptr<StoredWeight> weight = std::move(it->second);
    quantized_.erase(it);
    return weight;
  }

 private:
  struct Window {
    std::vector<int32_t> tokens;
    std::vector<std::byte>
        hidden;  // before the next layer: [tokens, hidden] of the activations' type
  };

  Tensor hidden_of(const Window& window) {
    return ctx_.workspace.tensor(ctx_.activation_dtype,
                                 {static_cast<int64_t>(window.tokens.size()), config_.hidden_size});
  }

  // run(window, its batch, its hidden states) for each window; what is left in these is kept if
  // `keep`.
  template <typename Run>
  void for_each_window(bool keep, const Run& run) {
    for (Window& window : windows_) {
      StepPlan plan;
      SequenceSlice& slice = plan.slices.emplace_back();
      slice.tokens = window.tokens;
      const auto pages = static_cast<int32_t>((window.tokens.size() + kPageSize - 1) / kPageSize);
      for (int32_t i = 0; i < pages; ++i) slice.pages.push_back(i);
      const StepBatch batch(plan, layout_, kPageSize);
      ctx_.workspace.reset();
      const auto size = static_cast<int64_t>(batch.numbers().size());
      const Tensor memory = ctx_.workspace.from_host(DType::kI32, batch.numbers().data(), {size});
      ops_.begin_step();
      const Tensor hidden = run(window, batch.on_device(memory));
      ops_.end_step();
      if (!keep) continue;
      window.hidden.resize(hidden.num_bytes());
      rank_.device().copy_to_host(window.hidden.data(), hidden.data, window.hidden.size());
    }
  }

  void embed() {
    const int64_t vocab = config_.vocab_size;
    CheckpointSource source(*decoded_, rank_.device(), dtype_);
    VocabParallelEmbedding table;
    table.load(source, "model.embed_tokens", vocab, config_.hidden_size, {{0, vocab}}, 0);
    for_each_window(/*keep=*/true, [&](const Window&, const ModelBatch& batch) {
      return table.forward(ctx_, batch.token_ids);
    });
  }

  // All windows through the layer.
  void run(const DecoderLayer& layer, bool keep) {
    const auto eps = static_cast<float>(config_.rms_norm_eps);
    for_each_window(keep, [&](const Window& window, const ModelBatch& batch) {
      const Tensor residual = hidden_of(window), h = hidden_of(window);
      rank_.device().copy_to_device(residual.data, window.hidden.data(), window.hidden.size());
      ops_.rms_norm(residual, layer.input_layernorm, eps, h);
      // The norm that follows belongs to the next layer: any will do.
      run_layer(ctx_, layout_, layer, layer.input_layernorm, eps, batch, cache_.views().layers[0],
                residual, h);
      return residual;
    });
  }

  void next_layer() {
    ++layer_;
    quantized_.clear();
    CheckpointSource source(*decoded_, rank_.device(), dtype_);
    RecordingSource recording(source);
    const DecoderLayer layer = layers_->load(layer_, recording);
    std::map<std::string, std::vector<std::string>> by_input;  // names with the same input
    std::map<const void*, std::string> inputs;
    for (const auto& [name, weight] : recording.weights) {
      if (!is_quantizable(name) || !scheme_.form(weight.k())) continue;
      const std::string input = input_of(name);
      by_input[input].push_back(name);
      inputs[recording.weights[input].data.data] = input;
    }
    ops_.record(std::move(inputs));
    run(layer, /*keep=*/false);
    for (const auto& [input, names] : by_input) {
      const int64_t k = recording.weights[input].k();
      const InputStatistics statistics = input_statistics(ops_.take_sum(input, k), k, threads_);
      for (const std::string& name : names) quantize(name, recording.weights[name], statistics);
    }
    ops_.record({});
    if (layer_ + 1 < num_layers()) run(layer, /*keep=*/true);
  }

  void quantize(const std::string& name, const Weight& held, const InputStatistics& inputs) {
    const int64_t n = held.n(), k = held.k();
    const std::unique_ptr<StoredWeight> stored = stored_->matrix(name, n, k);
    std::vector<float> values(n * k);
    decode_weight(*stored, {0, n}, {0, k}, values.data());
    std::unique_ptr<StoredWeight> weight =
        gptq_quantize(values, n, k, inputs, scheme_, stored->where(), threads_);
    decode_weight(*weight, {0, n}, {0, k}, values.data());
    replace(held, values);
    quantized_[name] = std::move(weight);
  }

  // From now on the layer computes with `values`.
  void replace(const Weight& weight, const std::vector<float>& values) {
    SHOAL_CHECK(weight.data.num_elements() == static_cast<int64_t>(values.size()) &&
                    weight.data.contiguous(),
                "{} values for {}", values.size(), weight.data.shape_string());
    if (weight.data.dtype == DType::kF32) {
      rank_.device().copy_to_device(weight.data.data, values.data(), weight.data.num_bytes());
      return;
    }
    std::vector<uint16_t> rounded(values.size());
    const bool half = weight.data.dtype == DType::kF16;
    for (size_t i = 0; i < values.size(); ++i) {
      rounded[i] = half ? to_f16(values[i]).bits : to_bf16(values[i]).bits;
    }
    rank_.device().copy_to_device(weight.data.data, rounded.data(), weight.data.num_bytes());
  }

  RankRuntime& rank_;
  const QuantizationScheme scheme_;
  const int threads_;
  const ModelConfig config_;
  const ParallelLayout layout_;
  const DType dtype_;
  const ModelOptions options_;
  const std::unique_ptr<Checkpoint> stored_, decoded_;
  CheckpointSource shared_source_;
  RecordingOps ops_;
  const ExecContext plain_;
  ExecContext ctx_;
  const std::unique_ptr<LayerLoader> layers_;
  PagedKvCache cache_;  // of one layer
  std::vector<Window> windows_;
  int64_t layer_ = -1;
  std::map<std::string, std::unique_ptr<StoredWeight>> quantized_;  // of that layer, not yet taken
};

Calibration::Calibration(RankRuntime& rank, const std::string& model_dir,
                         std::vector<int32_t> tokens, int window, QuantizationScheme scheme,
                         int threads)
    : runner_(std::make_unique<Runner>(rank, model_dir, tokens, window, scheme, threads)),
      scheme_(std::move(scheme)) {}

Calibration::~Calibration() = default;

std::unique_ptr<StoredWeight> Calibration::quantize(const std::string& name,
                                                    std::unique_ptr<StoredWeight> base) {
  if (layer_of(name) < 0 || layer_of(name) >= runner_->num_layers()) {
    return quantize_weight(std::move(base), scheme_);
  }
  return runner_->take(name);
}

}  // namespace shoal
