#include "runtime/memory/weight_bytes.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/base/error.h"
#include "runtime/checkpoint/checkpoint_source.h"
#include "runtime/quantization/scheme.h"

namespace shoal {
namespace {

std::string stem(const PlannedTensor& tensor) {
  constexpr std::string_view kWeight = ".weight";
  return tensor.name.substr(0, tensor.name.size() - kWeight.size());
}

}  // namespace

FormOf forms_as_published(const ModelConfig& config, DType dtype) {
  const bool fp8 = config.quantization.method == QuantizationMethod::kFp8;
  const WeightForm blocks{DType::kF8E4M3, config.quantization.block_rows, config.quantization.block_cols};
  return [=](const PlannedTensor& tensor) -> WeightForm {
    if (tensor.k == 0) return {.dtype = DType::kF32};
    return fp8 && is_quantizable(stem(tensor)) ? blocks : WeightForm{.dtype = dtype};
  };
}

FormOf forms_quantized(FormOf stored, const std::string& quantization) {
  if (quantization == "none") return stored;
  const QuantizationScheme scheme = parse_scheme("--quantization", quantization);
  return [stored = std::move(stored), scheme](const PlannedTensor& tensor) {
    const WeightForm form = stored(tensor);
    if (tensor.k == 0 || !is_quantizable(stem(tensor))) return form;
    if (stays_as_stored(form.dtype, scheme)) return form;
    return scheme.form(tensor.k).value_or(form);
  };
}

FormOf forms_of_checkpoint(std::shared_ptr<const Checkpoint> checkpoint, DType dtype) {
  return [checkpoint = std::move(checkpoint), dtype](const PlannedTensor& tensor) {
    WeightForm form = planned_weight(*checkpoint, tensor)->form();
    form.dtype = tensor.k == 0 ? DType::kF32 : held_type(form.dtype, dtype, tensor.keep_f32);
    return form;
  };
}

void check_layout(const ModelConfig& config, int ranks, bool dp_attention) {
  if (ranks > config.num_attention_heads && !dp_attention) {
    throw_invalid("--tensor-parallel-size {}: the model has {} attention heads; use at most that many",
                  ranks, config.num_attention_heads);
  }
  if (config.n_routed_experts > 0 && ranks > config.n_routed_experts) {
    throw_invalid("--tensor-parallel-size {}: the model has {} routed experts; use at most that many",
                  ranks, config.n_routed_experts);
  }
}

uint64_t ModelWeights::Held::total() const {
  uint64_t sum = absorbed + rounding;
  for (const uint64_t bytes : by_kind) sum += bytes;
  return sum;
}

ModelWeights::ModelWeights(const ModelConfig& config, const FormOf& form_of, DType dtype,
                           bool with_mtp)
    : config_(config), dtype_(dtype), with_mtp_(with_mtp) {
  using Key = std::tuple<TensorKind, int64_t, int64_t, Cut, bool, int64_t, bool, DType, int32_t,
                         int32_t, bool, bool>;
  std::map<Key, size_t> index;
  std::vector<Loaded> last;  // embedding, final norm and head come after the layers
  for (const PlannedTensor& tensor : tensor_plan(config)) {
    const WeightForm form = form_of(tensor);
    const bool kv_b = tensor.name.ends_with(".kv_b_proj.weight");
    const Key key{tensor.kind,     tensor.n,        tensor.k,   tensor.cut,      tensor.cut_columns,
                  tensor.per_head, tensor.keep_f32, form.dtype, form.block_rows, form.block_cols,
                  form.has_min,    kv_b};
    const auto [at, inserted] = index.emplace(key, classes_.size());
    if (inserted) classes_.push_back({.tensor = tensor, .form = form, .kv_b = kv_b});
    ++classes_[at->second].count;
    const bool is_vector = tensor.k == 0;
    Whole& whole = whole_[static_cast<int>(tensor.kind)];
    whole.parameters += tensor.n * (is_vector ? 1 : tensor.k);
    whole.bytes += form.bytes({0, tensor.n}, {0, is_vector ? 1 : tensor.k});

    if (tensor.kind == TensorKind::kMtp && !with_mtp) continue;
    const Loaded loaded{static_cast<uint16_t>(at->second),
                        static_cast<int16_t>(tensor.cut == Cut::kExpert ? tensor.expert : -1)};
    const bool in_layer = tensor.name.starts_with("model.layers.");
    (in_layer ? order_ : last).push_back(loaded);
    if (tensor.name.ends_with(".self_attn.o_proj.weight") && config.is_mla()) {
      order_.push_back({.absorbed = true});
    }
  }
  order_.insert(order_.end(), last.begin(), last.end());
}

ModelWeights::Held ModelWeights::held(const ParallelLayout& layout, uint64_t rope_table,
                                      bool experts_apart) const {
  // CheckpointSource's memory: tensors up to a quarter of a chunk share chunks, all begin at multiples of a
  // cache line.
  constexpr uint64_t kChunk = uint64_t{1} << 20, kSmall = kChunk / 4, kLine = 64;
  uint64_t taken = 0, asked = 0, left = 0;
  const auto take = [&](uint64_t bytes) {
    const uint64_t rounded = std::max((bytes + kLine - 1) / kLine * kLine, kLine);
    asked += bytes;
    if (rounded > kSmall) {
      taken += rounded;
      return;
    }
    if (rounded > left) {
      taken += kChunk;
      left = kChunk;
    }
    left -= rounded;
  };

  const bool experts = config_.n_routed_experts > 0;
  const Range own = experts ? split_evenly(config_.n_routed_experts, layout.size)[layout.rank] : Range{};
  struct Sizes {
    uint64_t all = 0, numbers = 0;
  };
  std::vector<Sizes> sizes;  // of a tensor of each class
  for (const Class& c : classes_) {
    PlannedTensor tensor = c.tensor;
    if (tensor.cut == Cut::kExpert) tensor.expert = own.begin;  // any of the rank's
    const HeldSlice slice =
        held_slice(tensor, config_, layout.size, layout.rank, layout.dp_attention);
    const uint64_t all = c.form.bytes(slice.rows, slice.cols);
    sizes.push_back({all, all == 0 ? 0
                                   : static_cast<uint64_t>(slice.rows.size()) *
                                         c.form.row_bytes(slice.cols.size())});
  }
  const int64_t heads = layout.dp_attention
                            ? config_.num_attention_heads
                            : split_evenly(config_.num_attention_heads, layout.size)[layout.rank].size();
  Held held;
  take(rope_table);
  for (const Loaded& loaded : order_) {
    if (loaded.absorbed) {
      for (const int64_t width : {config_.qk_nope_head_dim, config_.v_head_dim}) {
        const auto bytes =
            static_cast<uint64_t>(heads * width * config_.kv_lora_rank * dtype_size(dtype_));
        held.absorbed += bytes;
        take(bytes);
      }
      continue;
    }
    if (loaded.expert >= 0 && !own.contains(loaded.expert)) continue;
    const Class& c = classes_[loaded.of_class];
    const Sizes& size = sizes[loaded.of_class];
    held.by_kind[static_cast<int>(c.tensor.kind)] += size.all;
    ++held.tensors;
    if (experts_apart && c.tensor.kind == TensorKind::kRoutedExperts) continue;
    take(size.numbers);
    if (!has_scales(c.form.dtype)) continue;
    const uint64_t scales = size.all - size.numbers;
    const int parts = c.form.has_min ? 2 : 1;
    for (int part = 0; part < parts; ++part) take(scales / parts);
  }
  held.rounding = taken - asked;
  return held;
}

int64_t ModelWeights::parameters() const {
  int64_t sum = 0;
  for (int kind = 0; kind < kNumTensorKinds; ++kind) {
    if (kind != static_cast<int>(TensorKind::kMtp)) sum += whole_[kind].parameters;
  }
  return sum;
}

int64_t ModelWeights::active_parameters() const {
  int64_t active = parameters() - whole(TensorKind::kRoutedExperts).parameters;
  if (config_.n_routed_experts > 0) {
    active += whole(TensorKind::kRoutedExperts).parameters / config_.n_routed_experts *
              config_.router.top_k;
  }
  // Of an embedding that is not also the head a token meets one row.
  return config_.tie_word_embeddings ? active : active - whole(TensorKind::kEmbedding).parameters;
}

uint64_t ModelWeights::total_bytes() const {
  uint64_t sum = 0;
  for (int kind = 0; kind < kNumTensorKinds; ++kind) {
    if (kind != static_cast<int>(TensorKind::kMtp)) sum += whole_[kind].bytes;
  }
  return sum;
}

uint64_t ModelWeights::kv_b_bytes(const ParallelLayout& layout) const {
  uint64_t sum = 0;
  for (const Class& c : classes_) {
    if (!c.kv_b || c.tensor.kind == TensorKind::kMtp) continue;
    const HeldSlice slice =
        held_slice(c.tensor, config_, layout.size, layout.rank, layout.dp_attention);
    sum += c.form.bytes(slice.rows, slice.cols) * static_cast<uint64_t>(c.count);
  }
  return sum;
}

}  // namespace shoal
