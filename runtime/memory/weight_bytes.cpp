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
    if (form.dtype == DType::kI8 || form.dtype == DType::kI4x2) {
      throw_invalid("--quantization {}: the checkpoint's tensor {} is {} already", scheme.name, tensor.name,
                    dtype_name(form.dtype));
    }
    if (form.dtype == scheme.dtype) return form;
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
  for (const PlannedTensor& tensor : tensor_plan(config)) {
    const WeightForm form = form_of(tensor);
    const bool kv_b = tensor.name.ends_with(".kv_b_proj.weight");
    const Key key{tensor.kind,     tensor.n,        tensor.k,   tensor.cut,      tensor.cut_columns,
                  tensor.per_head, tensor.keep_f32, form.dtype, form.block_rows, form.block_cols,
                  form.has_min,    kv_b};
    const auto [at, inserted] = index.emplace(key, classes_.size());
    if (inserted) classes_.push_back({.tensor = tensor, .form = form, .kv_b = kv_b});
    Class& c = classes_[at->second];
    if (tensor.cut == Cut::kExpert) {
      c.per_expert.resize(static_cast<size_t>(config.n_routed_experts));
      ++c.per_expert[static_cast<size_t>(tensor.expert)];
    } else {
      ++c.count;
    }
    const bool is_vector = tensor.k == 0;
    Whole& whole = whole_[static_cast<int>(tensor.kind)];
    whole.parameters += tensor.n * (is_vector ? 1 : tensor.k);
    whole.bytes += form.bytes({0, tensor.n}, {0, is_vector ? 1 : tensor.k});
  }
}

int64_t ModelWeights::held_count(const Class& c, const ParallelLayout& layout) const {
  if (c.tensor.cut != Cut::kExpert) return c.count;
  const Range own = split_evenly(config_.n_routed_experts, layout.size)[layout.rank];
  int64_t count = 0;
  for (int64_t e = own.begin; e < own.end; ++e) count += c.per_expert[static_cast<size_t>(e)];
  return count;
}

ModelWeights::Held ModelWeights::held(const ParallelLayout& layout) const {
  // As the loader does: small tensors share chunks, all begin at multiples of a cache line.
  constexpr uint64_t kChunk = uint64_t{1} << 20, kSmall = kChunk / 4, kLine = 64;
  Held held;
  uint64_t small = 0, exact = 0, taken = 0;
  int64_t num_small = 0;
  const auto take = [&](uint64_t bytes, int64_t count) {
    const uint64_t rounded = std::max((bytes + kLine - 1) / kLine * kLine, kLine);
    exact += bytes * count;
    if (rounded > kSmall) {
      taken += rounded * count;
    } else {
      small += rounded * count;
      num_small += count;
    }
  };
  for (const Class& c : classes_) {
    if (c.tensor.kind == TensorKind::kMtp && !with_mtp_) continue;
    PlannedTensor tensor = c.tensor;
    const int64_t count = held_count(c, layout);
    if (count == 0) continue;
    if (tensor.cut == Cut::kExpert) {  // the class is of all experts; any of the rank's will do
      tensor.expert = split_evenly(config_.n_routed_experts, layout.size)[layout.rank].begin;
    }
    const HeldSlice slice =
        held_slice(tensor, config_, layout.size, layout.rank, layout.dp_attention);
    const uint64_t bytes = c.form.bytes(slice.rows, slice.cols);
    held.by_kind[static_cast<int>(tensor.kind)] += bytes * static_cast<uint64_t>(count);
    held.tensors += count;
    const uint64_t numbers =
        bytes == 0 ? 0 : static_cast<uint64_t>(slice.rows.size()) * c.form.row_bytes(slice.cols.size());
    take(numbers, count);
    if (bytes > numbers) {
      const uint64_t scales = bytes - numbers;
      const int64_t parts = c.form.has_min ? 2 : 1;
      take(scales / parts, count * parts);
    }
  }
  if (config_.is_mla()) {
    const int64_t layers =
        config_.num_hidden_layers + (with_mtp_ ? config_.num_nextn_predict_layers : 0);
    const int64_t heads = layout.dp_attention
                              ? config_.num_attention_heads
                              : split_evenly(config_.num_attention_heads, layout.size)[layout.rank].size();
    for (const int64_t width : {config_.qk_nope_head_dim, config_.v_head_dim}) {
      const auto bytes =
          static_cast<uint64_t>(heads * width * config_.kv_lora_rank * dtype_size(dtype_));
      held.absorbed += bytes * static_cast<uint64_t>(layers);
      take(bytes, layers);
    }
  }
  // A chunk ends with half a tensor left over, on average.
  if (num_small > 0) {
    const uint64_t usable = kChunk - small / static_cast<uint64_t>(num_small) / 2;
    taken += (small + usable - 1) / usable * kChunk;
  }
  held.rounding = taken - std::min(taken, exact);
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
