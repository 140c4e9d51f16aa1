#include "runtime/quantization/calibration.h"

#include <algorithm>
#include <charconv>

#include "kernels/base/error.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/checkpoint/checkpoint_source.h"
#include "runtime/engine/step_batch.h"
#include "runtime/model/gqa_attention.h"
#include "runtime/model/model.h"
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
  Runner(RankRuntime& rank, const std::string& dir, std::vector<int32_t> tokens, int window)
      : rank_(rank),
        tokens_(std::move(tokens)),
        window_(window),
        config_(read_model_config(dir)),
        dtype_(config_.torch_dtype == DType::kF32 ? DType::kF32 : DType::kBF16),
        checkpoint_(decode_checkpoint(Checkpoint::open(dir))),
        checkpoint_source_(*checkpoint_, rank.device(), dtype_),
        source_(checkpoint_source_),
        ops_(rank.ops(), rank.device()) {
    SHOAL_CHECK(rank.size() == 1, "calibration on {} ranks", rank.size());
    if (window > config_.max_position_embeddings) {
      throw_invalid("--calibration: windows of {} tokens; the model's max_position_embeddings is {}",
                    window, config_.max_position_embeddings);
    }
    for (const int32_t token : tokens_) {
      if (token < 0 || token >= config_.vocab_size) {
        throw_invalid("--calibration: the text gives token {}; the model's vocabulary has {}", token,
                      config_.vocab_size);
      }
    }
    ExecContext ctx = context();
    model_ = make_model(config_, layout_, {dtype_, window, /*load_mtp=*/false}, source_, ctx);
    const int32_t pages = (window + kPageSize - 1) / kPageSize;
    cache_ = std::make_unique<PagedKvCache>(
        rank.device(),
        KvCacheLayout(config_, local_kv_heads(config_, layout_), config_.num_hidden_layers, dtype_,
                      kPageSize),
        pages);
    for (int32_t i = 0; i < pages; ++i) pages_.push_back(i);
  }

  const Weight* find(const std::string& name) const {
    const auto it = source_.weights.find(name);
    return it == source_.weights.end() ? nullptr : &it->second;
  }

  // Sums up the inputs of all matrices of a layer.
  void record(int64_t layer) {
    std::map<const void*, std::string> weights;
    for (const auto& [name, weight] : source_.weights) {
      if (layer_of(name) == layer && is_quantizable(name) && input_of(name) == name) {
        weights[weight.data.data] = name;
      }
    }
    ops_.record(std::move(weights));
    for (size_t begin = 0; begin < tokens_.size(); begin += window_) {
      const size_t end = std::min(begin + window_, tokens_.size());
      run(std::span(tokens_).subspan(begin, end - begin));
    }
  }
  const std::vector<float>& sum_of(const std::string& name, int64_t k) {
    return ops_.sum_of(name, k);
  }

  // From now on the model computes with `values`.
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

 private:
  ExecContext context() {
    const ExecContext plain = rank_.exec(dtype_);
    return {ops_, plain.workspace, plain.comm, plain.activation_dtype};
  }

  void run(std::span<const int32_t> tokens) {
    StepPlan plan;
    SequenceSlice& slice = plan.slices.emplace_back();
    slice.tokens.assign(tokens.begin(), tokens.end());
    slice.pages = pages_;
    const StepBatch batch(plan, layout_, kPageSize);
    rank_.workspace().reset();
    const auto size = static_cast<int64_t>(batch.numbers().size());
    const Tensor memory =
        rank_.workspace().from_host(DType::kI32, batch.numbers().data(), {size});
    ExecContext ctx = context();
    ctx.ops.begin_step();
    model_->forward(ctx, batch.on_device(memory), cache_->views());
    ctx.ops.end_step();
  }

  RankRuntime& rank_;
  const std::vector<int32_t> tokens_;
  const int window_;
  const ModelConfig config_;
  const ParallelLayout layout_;
  const DType dtype_;
  const std::unique_ptr<Checkpoint> checkpoint_;
  CheckpointSource checkpoint_source_;
  RecordingSource source_;
  RecordingOps ops_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<PagedKvCache> cache_;
  std::vector<int32_t> pages_;
};

Calibration::Calibration(RankRuntime& rank, const std::string& model_dir,
                         std::vector<int32_t> tokens, int window, QuantizationScheme scheme,
                         int threads)
    : runner_(std::make_unique<Runner>(rank, model_dir, std::move(tokens), window)),
      scheme_(std::move(scheme)),
      threads_(threads) {}

Calibration::~Calibration() = default;

std::unique_ptr<StoredWeight> Calibration::quantize(const std::string& name,
                                                    std::unique_ptr<StoredWeight> base) {
  const Weight* held = runner_->find(name);
  if (held == nullptr) return quantize_weight(std::move(base), scheme_);
  if (const int64_t layer = layer_of(name); layer != layer_) {
    layer_ = layer;
    factor_of_.clear();
    runner_->record(layer);
  }
  const int64_t n = base->n(), k = base->k();
  if (const std::string input = input_of(name); input != factor_of_) {
    factor_ = inverse_factor(runner_->sum_of(input, k), k);
    factor_of_ = input;
  }
  std::vector<float> values(n * k);
  decode_weight(*base, {0, n}, {0, k}, values.data());
  std::unique_ptr<StoredWeight> quantized =
      gptq_quantize(std::move(values), n, k, factor_, scheme_, base->where(), threads_);
  std::vector<float> rounded(n * k);
  decode_weight(*quantized, {0, n}, {0, k}, rounded.data());
  runner_->replace(*held, rounded);
  return quantized;
}

}  // namespace shoal
