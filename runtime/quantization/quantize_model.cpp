#include "runtime/quantization/quantize_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"
#include "runtime/checkpoint/tensor_plan.h"
#include "runtime/quantization/decoded_weight.h"
#include "runtime/quantization/model_output.h"
#include "runtime/quantization/quantized_weight.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string module_of(const std::string& name) {
  return name.substr(0, name.size() - std::string_view(".weight").size());
}

class Quantizer {
 public:
  Quantizer(const QuantizeOptions& options, const QuantizeProgress& progress)
      : options_(options),
        progress_(progress),
        config_(read_model_config(options.input)),
        checkpoint_(Checkpoint::open(options.input)),
        plan_(tensor_plan(config_)) {
    check_all_known(*checkpoint_, config_);
  }

  void run() {
    cut_into_shards();
    ModelOutput output(options_.output, options_.input, recipe());
    Json index = {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", Json::object()}};
    for (size_t i = 0; i < shards_.size(); ++i) {
      const std::string name =
          fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards_.size());
      const Shard& shard = shards_[i];
      for (const OutputTensor& tensor : shard.outputs) index["weight_map"][tensor.name] = name;
      if (output.finished(name, shard.outputs)) {
        // Layers to come see what the calibrated ones before them make.
        for (const PlannedTensor* tensor : shard.tensors) {
          if (options_.calibrated) output_weight(*tensor, /*final=*/true);
        }
        advance(shard.input_bytes);
        continue;
      }
      output.write_shard(name, shard.outputs, [&](const ModelOutput::Write& write) {
        for (const PlannedTensor* tensor : shard.tensors) {
          const std::unique_ptr<StoredWeight> weight = output_weight(*tensor, /*final=*/true);
          write_weight(*weight, options_.threads, write);
          advance(input_bytes(*weight));
        }
      });
    }
    output.write_text("model.safetensors.index.json", index.dump(2) + "\n");
    copy_others(output);
    output.finish(config_json().dump(2) + "\n");
  }

 private:
  struct Shard {
    std::vector<const PlannedTensor*> tensors;
    std::vector<OutputTensor> outputs;
    uint64_t bytes = 0, input_bytes = 0;
  };

  static uint64_t input_bytes(const StoredWeight& weight) {
    return weight.stored_bytes({0, weight.n()}, {0, weight.k()});
  }

  bool quantized(const PlannedTensor& tensor) const {
    return tensor.k > 0 && is_quantizable(module_of(tensor.name)) &&
           options_.scheme.form(tensor.k).has_value();
  }

  // As it goes into the output. The forms of a calibrated weight are known before it is calibrated.
  std::unique_ptr<StoredWeight> output_weight(const PlannedTensor& tensor, bool final) const {
    std::unique_ptr<StoredWeight> base = planned_weight(*checkpoint_, tensor);
    const DType type = base->form().dtype;
    if (type == DType::kI4x2 || type == DType::kI8) {
      throw_invalid("{} is {} already; quantise the model that it was made from", base->where(),
                    dtype_name(type));
    }
    if (!quantized(tensor)) {
      // FP8 that the scheme leaves alone (an eh_proj) as bfloat16: one format a file.
      if (type == DType::kF8E4M3) return decode_to_bf16(std::move(base));
      return base;
    }
    if (type == DType::kF8E4M3 && options_.scheme.dtype == DType::kF8E4M3) {
      throw_invalid("{} is float8_e4m3 already; --scheme {} has nothing to do", base->where(),
                    options_.scheme.name);
    }
    if (final && options_.calibrated) {
      return options_.calibrated(module_of(tensor.name), std::move(base));
    }
    return quantize_weight(std::move(base), options_.scheme);
  }

  void cut_into_shards() {
    if (std::none_of(plan_.begin(), plan_.end(),
                     [this](const PlannedTensor& tensor) { return quantized(tensor); })) {
      throw_invalid("--scheme {}: no matrix of {} has rows of a multiple of 16", options_.scheme.name,
                    options_.input);
    }
    for (const PlannedTensor& tensor : plan_) {
      const std::unique_ptr<StoredWeight> weight = output_weight(tensor, /*final=*/false);
      std::vector<OutputTensor> outputs;
      if (tensor.k > 0) {
        outputs = output_tensors(module_of(tensor.name), *weight);
      } else {
        outputs = output_tensors("", *weight);
        outputs[0].name = tensor.name;
        outputs[0].shape = {tensor.n};
      }
      uint64_t bytes = 0;
      for (const OutputTensor& output : outputs) bytes += output.bytes;
      if (shards_.empty() || (shards_.back().bytes > 0 &&
                              shards_.back().bytes + bytes > options_.max_shard_bytes)) {
        shards_.emplace_back();
      }
      Shard& shard = shards_.back();
      shard.tensors.push_back(&tensor);
      shard.outputs.insert(shard.outputs.end(), outputs.begin(), outputs.end());
      shard.bytes += bytes;
      shard.input_bytes += input_bytes(*weight);
      total_bytes_ += bytes;
      all_input_bytes_ += input_bytes(*weight);
    }
  }

  // What decides the bytes of the output.
  std::string recipe() const {
    return fmt::format("{} {} {} {} {}", options_.scheme.name, options_.max_shard_bytes,
                       checkpoint_->path(), checkpoint_->total_bytes(), options_.calibration_id);
  }

  void copy_others(ModelOutput& output) const {
    for (const auto& entry : fs::directory_iterator(options_.input)) {
      const std::string name = entry.path().filename().string();
      bool weights = name == "config.json" || name.ends_with(".index.json");
      for (const char* end : {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"}) {
        weights = weights || name.ends_with(end);
      }
      if (!weights && entry.is_regular_file()) output.copy_file(entry.path().string(), name);
    }
  }

  Json config_json() const {
    const std::string path = options_.input + "/config.json";
    const std::string text = read_small_file(path, kMaxConfigBytes);
    parse_strict_json(text, path);
    Json json = Json::parse(text);
    json.erase("compression_config");
    json["quantization_config"] = quantization_json();
    return json;
  }

  Json quantization_json() const {
    const QuantizationScheme& scheme = options_.scheme;
    Json kept = Json::array();
    std::map<int32_t, Json> modules_by_group;
    for (const PlannedTensor& tensor : plan_) {
      if (tensor.k == 0 || tensor.kind == TensorKind::kEmbedding) continue;
      const std::string module = module_of(tensor.name);
      if (!quantized(tensor)) {
        kept.push_back(module);
      } else {
        modules_by_group[scheme.group == 0 ? 0 : scheme.form(tensor.k)->block_cols].push_back(module);
      }
    }
    if (scheme.dtype == DType::kF8E4M3) {
      return {{"quant_method", "fp8"},
              {"fmt", "e4m3"},
              {"activation_scheme", "dynamic"},
              {"weight_block_size", {scheme.group, scheme.group}},
              {"modules_to_not_convert", kept}};
    }
    Json groups = Json::object();
    for (const auto& [group, modules] : modules_by_group) {
      // All linear layers alike are named by their class, the ones that differ by their names.
      const bool all = group == scheme.group;
      Json weights = {{"num_bits", scheme.dtype == DType::kI4x2 ? 4 : 8},
                      {"type", "int"},
                      {"symmetric", scheme.symmetric},
                      {"strategy", group == 0 ? "channel" : "group"},
                      {"dynamic", false}};
      if (group > 0) weights["group_size"] = group;
      groups["group_" + std::to_string(groups.size())] = {
          {"targets", all ? Json::array({"Linear"}) : modules}, {"weights", weights},
          {"input_activations", nullptr}, {"output_activations", nullptr}};
    }
    return {{"quant_method", "compressed-tensors"},
            {"format", "pack-quantized"},
            {"quantization_status", "compressed"},
            {"config_groups", groups},
            {"ignore", kept}};
  }

  void advance(uint64_t bytes) {
    done_ += bytes;
    if (progress_) progress_(done_, all_input_bytes_);
  }

  const QuantizeOptions& options_;
  const QuantizeProgress& progress_;
  const ModelConfig config_;
  const std::unique_ptr<Checkpoint> checkpoint_;
  const std::vector<PlannedTensor> plan_;
  std::vector<Shard> shards_;
  uint64_t total_bytes_ = 0, all_input_bytes_ = 0, done_ = 0;
};

}  // namespace

void quantize_model(const QuantizeOptions& options, const QuantizeProgress& progress) {
  if (!fs::is_directory(options.input)) {
    throw_invalid("--model {}: not a folder in Hugging Face's layout", options.input);
  }
  Quantizer(options, progress).run();
}

}  // namespace shoal
