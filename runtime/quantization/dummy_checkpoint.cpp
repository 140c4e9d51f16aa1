#include "runtime/quantization/dummy_checkpoint.h"

#include <cmath>
#include <cstring>
#include <map>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"
#include "runtime/checkpoint/tensor_plan.h"
#include "runtime/quantization/quantized_weight.h"

namespace shoal {
namespace {

// FNV-1a: the same on every machine, which std::hash does not promise.
uint64_t hash_name(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// SplitMix64 of a counter: any element can be had without those before it.
uint64_t random_bits(uint64_t key, uint64_t index) {
  uint64_t z = key + index * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// 16 bits of the element `index`; four neighbours share a call of random_bits.
class Lanes {
 public:
  explicit Lanes(uint64_t key) : key_(key) {}
  uint16_t at(int64_t index) {
    const int64_t word = index >> 2;
    if (word != word_) {
      word_ = word;
      bits_ = random_bits(key_, static_cast<uint64_t>(word));
    }
    return static_cast<uint16_t>(bits_ >> (16 * (index & 3)));
  }
  // In [-1, 1), of mean 0.
  float uniform(int64_t index) { return (static_cast<float>(at(index)) + 0.5f) * 0x1p-15f - 1.0f; }

 private:
  const uint64_t key_;
  int64_t word_ = -1;
  uint64_t bits_ = 0;
};

// What the values of a tensor look like: uniform in center +- amplitude.
struct Values {
  float center = 0, amplitude = 0;
};

Values values_of(const PlannedTensor& tensor, const ModelConfig& config) {
  if (tensor.k == 0) {
    // Norms near 1; biases small enough not to decide anything by themselves.
    return tensor.name.ends_with("norm.weight") ? Values{1, 0.1f} : Values{0, 0.02f};
  }
  // Rows of length 1 in the mean square: products keep the size of what they multiply, and the
  // logits of a router have a deviation of 1, which spreads tokens over the experts.
  const float plain = std::sqrt(3.0f / static_cast<float>(tensor.k));
  // An embedding that is no head has elements of order 1: after the first layers the residual still
  // tells one token from another.
  const bool embedding = tensor.name.ends_with("embed_tokens.weight");
  return {0, embedding && !config.tie_word_embeddings ? std::sqrt(3.0f) : plain};
}

class DummyWeight : public StoredWeight {
 public:
  DummyWeight(std::string where, uint64_t key, int64_t n, int64_t k, WeightForm form, Values values)
      : where_(std::move(where)), key_(key), n_(n), k_(k), form_(form), values_(values) {}

  std::string where() const override { return where_; }
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  WeightForm form() const override { return form_; }
  uint64_t stored_bytes(Range rows, Range cols) const override { return form_.bytes(rows, cols); }

  void read(Range rows, Range cols, std::byte* numbers, float* scale, float* min) const override {
    Lanes lanes(key_);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t first = row * k_;
      switch (form_.dtype) {
        case DType::kF32:
          for (int64_t c = cols.begin; c < cols.end; ++c) put(numbers, value(lanes, first + c));
          break;
        case DType::kBF16:
          for (int64_t c = cols.begin; c < cols.end; ++c)
            put(numbers, to_bf16(value(lanes, first + c)));
          break;
        case DType::kF8E4M3:
          // Magnitudes from 1/8 to below 2: sign, exponent 4 to 7 and mantissa at random.
          for (int64_t c = cols.begin; c < cols.end; ++c) {
            const unsigned bits = lanes.at(first + c);
            put(numbers, static_cast<uint8_t>((bits & 0x87) | (4 + (bits >> 8 & 3)) << 3));
          }
          break;
        case DType::kI8:
          for (int64_t c = cols.begin; c < cols.end; ++c) {
            put(numbers, static_cast<int8_t>(lanes.at(first + c) % 255 - 127));
          }
          break;
        case DType::kI4x2:
          for (int64_t c = cols.begin; c < cols.end; c += 2) {
            const unsigned low = lanes.at(first + c) & 15, high = lanes.at(first + c + 1) & 15;
            put(numbers, static_cast<uint8_t>(low | high << 4));
          }
          break;
        default: SHOAL_CHECK(false, "{} as {}", where_, dtype_name(form_.dtype));
      }
    }
    if (has_scales(form_.dtype)) read_scales(rows, cols, scale, min);
  }

 private:
  template <typename T>
  static void put(std::byte*& out, T value) {
    std::memcpy(out, &value, sizeof value);
    out += sizeof value;
  }
  float value(Lanes& lanes, int64_t index) const {
    return values_.center + values_.amplitude * lanes.uniform(index);
  }

  // The codes' deviation times the scale is the deviation that a plain matrix has; no two blocks
  // are alike, so that one read in the place of another is seen.
  void read_scales(Range rows, Range cols, float* scale, float* min) const {
    constexpr float kFp8Deviation = 0.844f, kI8Deviation = 73.6f, kI4Deviation = 4.61f;
    const float codes = form_.dtype == DType::kF8E4M3 ? kFp8Deviation
                        : form_.dtype == DType::kI8   ? kI8Deviation
                                                      : kI4Deviation;
    const float middle = values_.amplitude / std::sqrt(3.0f) / codes;
    const Range block_rows = blocks_touched(rows, form_.block_rows);
    const Range block_cols = blocks_touched(cols, form_.block_cols);
    const int64_t stride = (k_ + form_.block_cols - 1) / form_.block_cols;
    Lanes scales(random_bits(key_, ~uint64_t{0})), mins(random_bits(key_, ~uint64_t{1}));
    for (int64_t r = block_rows.begin; r < block_rows.end; ++r) {
      for (int64_t c = block_cols.begin; c < block_cols.end; ++c) {
        *scale++ = middle * (1 + 0.125f * scales.uniform(r * stride + c));
        if (min != nullptr) *min++ = middle * mins.uniform(r * stride + c);
      }
    }
  }

  const std::string where_;
  const uint64_t key_;
  const int64_t n_, k_;
  const WeightForm form_;
  const Values values_;
};

// How the quantization_config's first scheme holds a row of k columns; nothing when it cannot.
std::optional<WeightForm> configured_form(const QuantizationConfig& config, int64_t n, int64_t k) {
  if (config.method == QuantizationMethod::kFp8) {
    return WeightForm{DType::kF8E4M3, config.block_rows, config.block_cols};
  }
  if (config.schemes.empty()) return std::nullopt;
  const WeightScheme& scheme = config.schemes.front();
  if (scheme.is_float) {
    const int64_t rows = scheme.block_rows > 0 ? scheme.block_rows : scheme.whole_tensor ? n : 1;
    const int64_t cols = scheme.block_cols > 0 ? scheme.block_cols
                         : scheme.whole_tensor ? k
                                               : scheme.group_of(k);
    return WeightForm{DType::kF8E4M3, static_cast<int32_t>(rows), static_cast<int32_t>(cols)};
  }
  // As PackedWeight holds them: groups of 128 at most, but for whole rows of int8.
  constexpr int64_t kWidest = 128;
  const int64_t group = scheme.group_of(k);
  const bool whole_row = group == k && scheme.bits == 8;
  return QuantizationScheme{.name = "",
                            .dtype = scheme.bits == 4 ? DType::kI4x2 : DType::kI8,
                            .group = whole_row ? 0 : std::min(group, kWidest),
                            .symmetric = scheme.symmetric}
      .form(k);
}

class DummyCheckpoint : public Checkpoint {
 public:
  DummyCheckpoint(const std::string& path, const std::string& quantization)
      : path_(path), config_(read_model_config(path)) {
    if (quantization != "none") {
      scheme_ = parse_scheme("--quantization", quantization);
      if (!config_.quantization.schemes.empty()) {
        throw_invalid("--quantization {}: {} says {} already; leave out the flag", quantization,
                      path, describe(config_.quantization));
      }
    }
    for (PlannedTensor& tensor : tensor_plan(config_)) {
      std::string name = tensor.name;
      tensors_.emplace(std::move(name), std::move(tensor));
    }
  }

  bool has(const std::string& name) const override { return tensors_.count(name) > 0; }
  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) names.push_back(name);
    return names;
  }
  std::unique_ptr<StoredWeight> matrix(const std::string& name, int64_t n,
                                       int64_t k) const override {
    return weight(require(name + ".weight", n, k));
  }
  std::unique_ptr<StoredWeight> vector(const std::string& name, int64_t n) const override {
    return weight(require(name, n, 0));
  }
  std::vector<FileTensor> file_tensors() const override {
    std::vector<FileTensor> tensors;
    for (const auto& [name, t] : tensors_) {
      const WeightForm form = form_of(t);
      tensors.push_back(
          {.name = name,
           .type = std::string(dtype_name(form.dtype)),
           .shape = t.k == 0 ? std::vector<int64_t>{t.n} : std::vector<int64_t>{t.n, t.k},
           .bytes = bytes_of(t),
           .file = "config.json"});  // all that there is
    }
    return tensors;
  }
  std::string quantization() const override {
    return scheme_ ? "made up in " + scheme_->name : describe(config_.quantization);
  }
  const std::string& path() const override { return path_; }
  size_t num_files() const override { return 0; }
  uint64_t total_bytes() const override {
    uint64_t bytes = 0;
    for (const auto& [name, tensor] : tensors_) bytes += bytes_of(tensor);
    return bytes;
  }

 private:
  const PlannedTensor& require(const std::string& name, int64_t n, int64_t k) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end() || it->second.n != n || it->second.k != k) {
      throw_invalid("{}: config.json gives no tensor {} of [{}, {}]", path_, in_quotes(name), n, k);
    }
    return it->second;
  }
  WeightForm form_of(const PlannedTensor& tensor) const {
    const bool f32 = config_.torch_dtype == DType::kF32;
    const WeightForm plain{.dtype = f32 || tensor.k == 0 ? DType::kF32 : DType::kBF16};
    if (tensor.k == 0) return plain;
    constexpr size_t kSuffix = std::string_view(".weight").size();
    if (!is_quantizable(tensor.name.substr(0, tensor.name.size() - kSuffix))) return plain;
    const std::optional<WeightForm> form =
        scheme_ ? scheme_->form(tensor.k)
                : configured_form(config_.quantization, tensor.n, tensor.k);
    return form.value_or(plain);
  }
  std::unique_ptr<StoredWeight> weight(const PlannedTensor& t) const {
    return std::make_unique<DummyWeight>(
        path_ + ": made up tensor " + in_quotes(t.name), random_bits(hash_name(t.name), 0), t.n,
        std::max<int64_t>(t.k, 1), form_of(t), values_of(t, config_));
  }
  uint64_t bytes_of(const PlannedTensor& t) const {
    return form_of(t).bytes({0, t.n}, {0, std::max<int64_t>(t.k, 1)});
  }

  const std::string path_;
  const ModelConfig config_;
  std::optional<QuantizationScheme> scheme_;
  std::map<std::string, PlannedTensor> tensors_;
};

}  // namespace

std::unique_ptr<Checkpoint> open_dummy_checkpoint(const std::string& path,
                                                  const std::string& quantization) {
  return std::make_unique<DummyCheckpoint>(path, quantization);
}

std::unique_ptr<Checkpoint> open_checkpoint_as(const std::string& load_format,
                                               const std::string& path,
                                               const std::string& quantization) {
  if (load_format == "dummy") return open_dummy_checkpoint(path, quantization);
  if (load_format == "auto") return open_checkpoint(path, quantization);
  throw_invalid("--load-format {}: use auto or dummy", load_format);
}

}  // namespace shoal
