#include "runtime/model/quantization_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"
#include "runtime/model/config_fields.h"

namespace shoal {
namespace {

constexpr int64_t kMaxGroup = int64_t{1} << 20;
constexpr uint64_t kMaxBlock = 8192;

// Two sides of a block of FP8 values.
std::pair<int32_t, int32_t> read_block(ConfigFields& fields, const char* name) {
  const nlohmann::json& block = fields.require(name);
  if (!block.is_array() || block.size() != 2) {
    fields.refuse(name, "should be two integers, such as [128, 128]");
  }
  for (const auto& side : block) {
    if (!side.is_number_unsigned() || side.get<uint64_t>() < 1 ||
        side.get<uint64_t>() > kMaxBlock) {
      fields.refuse(name, fmt::format("should be integers from 1 to {}", kMaxBlock));
    }
  }
  return {block[0].get<int32_t>(), block[1].get<int32_t>()};
}

QuantizationConfig read_fp8(ConfigFields& fields) {
  fields.only("fmt", "e4m3");
  // Scales of activations: they are not quantised here.
  fields.only("activation_scheme", "dynamic");
  fields.ignore({"scale_fmt"});
  // What each tensor is, its own type says.
  fields.ignore({"modules_to_not_convert", "ignored_layers"});
  QuantizationConfig config{.method = QuantizationMethod::kFp8};
  std::tie(config.block_rows, config.block_cols) = read_block(fields, "weight_block_size");
  return config;
}

int read_bits(ConfigFields& fields, const char* name, bool eight) {
  const int64_t bits = fields.integer(name, 1, 32);
  if (bits != 4 && (bits != 8 || !eight)) {
    fields.refuse(name, eight ? "supported are 4 and 8" : "supported is 4");
  }
  return static_cast<int>(bits);
}

// -1 stands for a whole row.
int64_t read_group(ConfigFields& fields, const char* name) {
  const int64_t group = fields.integer(name, -1, kMaxGroup);
  if (group != -1 && (group == 0 || group % 16 != 0)) {
    fields.refuse(name, "supported are multiples of 16, and -1 for a whole row");
  }
  return group == -1 ? 0 : group;
}

QuantizationConfig read_awq(ConfigFields& fields) {
  WeightScheme scheme{.symmetric = false};
  // AutoAWQ's older and newer names.
  const bool old = fields.has("w_bit");
  scheme.bits = read_bits(fields, old ? "w_bit" : "bits", /*eight=*/false);
  scheme.group_size = read_group(fields, old ? "q_group_size" : "group_size");
  fields.only("zero_point", true);
  const std::string version = fields.text("version", "gemm");
  if (version != "gemm" && version != "GEMM") {
    fields.refuse("version", "supported is \"gemm\"");
  }
  fields.ignore({"backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse",
                 "modules_to_not_convert"});
  return {.method = QuantizationMethod::kAwq, .schemes = {scheme}};
}

QuantizationConfig read_gptq(ConfigFields& fields) {
  WeightScheme scheme;
  scheme.bits = read_bits(fields, "bits", /*eight=*/true);
  scheme.group_size = read_group(fields, "group_size");
  scheme.symmetric = fields.flag("sym", true);
  QuantizationConfig config{.method = QuantizationMethod::kGptq, .schemes = {scheme}};
  const std::string format = fields.text("checkpoint_format", "gptq");
  if (format != "gptq" && format != "gptq_v2") {
    fields.refuse("checkpoint_format", "supported are \"gptq\" and \"gptq_v2\"");
  }
  config.gptq_zero_offset = format == "gptq" ? 1 : 0;
  fields.only("is_marlin_format", false);
  fields.only("dynamic", nlohmann::json::object());  // other bits for some modules
  fields.only("pack_dtype", "int32");
  fields.only("format", format);
  config.any_order = fields.flag("desc_act", false);
  // How the codes were found does not matter.
  fields.ignore({"static_groups", "true_sequential", "damp_percent",
                 "damp_auto_increment", "dataset", "model_name_or_path", "model_file_base_name",
                 "model_seqlen", "block_name_to_quantize", "module_name_preceding_first_block",
                 "modules_in_block_to_quantize", "modules_to_not_convert", "tokenizer",
                 "pad_token_id", "max_input_length", "batch_size", "cache_block_outputs", "backend",
                 "use_exllama", "disable_exllama", "exllama_config", "use_cuda_fp16", "lm_head",
                 "meta", "mse", "parallel_packing", "act_group_aware"});
  return config;
}

WeightScheme read_compressed_scheme(ConfigFields& fields) {
  WeightScheme scheme;
  scheme.bits = read_bits(fields, "num_bits", /*eight=*/true);
  const std::string type = fields.text("type", "int");
  if (type != "int" && type != "float") {
    fields.refuse("type", "supported are \"int\" and \"float\"");
  }
  scheme.is_float = type == "float";
  if (scheme.is_float && scheme.bits != 8) fields.refuse("num_bits", "8 for floats");
  scheme.symmetric = fields.flag("symmetric", true);
  if (scheme.is_float && !scheme.symmetric) fields.refuse("symmetric", "true for floats");
  const int64_t group = fields.integer("group_size", -1, kMaxGroup, -1);
  const std::string strategy =
      fields.text("strategy", group > 0 ? "group" : "tensor");  // compressed-tensors' defaults
  if (strategy == "group" && !scheme.is_float) {
    scheme.group_size = read_group(fields, "group_size");
  } else if (strategy == "tensor" && scheme.is_float) {
    scheme.whole_tensor = true;
  } else if (strategy == "block" && scheme.is_float) {
    std::tie(scheme.block_rows, scheme.block_cols) = read_block(fields, "block_structure");
  } else if (strategy != "channel") {
    fields.refuse("strategy", scheme.is_float
                                  ? "supported for floats are channel, tensor and block"
                                  : "supported for integers are channel and group");
  }
  fields.only("dynamic", false);
  fields.ignore({"actorder", "block_structure", "observer", "observer_kwargs", "scale_dtype",
                 "zp_dtype"});
  return scheme;
}

QuantizationConfig read_compressed(ConfigFields& fields) {
  QuantizationConfig config{.method = QuantizationMethod::kCompressedTensors};
  const std::string format = fields.text("format", "pack-quantized");
  constexpr std::string_view kFormats[] = {"pack-quantized", "int-quantized", "float-quantized",
                                           "naive-quantized", "mixed-precision"};
  if (std::find(std::begin(kFormats), std::end(kFormats), format) == std::end(kFormats)) {
    fields.refuse("format", fmt::format("supported are {}", fmt::join(kFormats, ", ")));
  }
  fields.only("quantization_status", "compressed");
  fields.only("kv_cache_scheme", nlohmann::json::object());
  fields.only("sparsity_config", nlohmann::json::object());
  fields.only("transform_config", nlohmann::json::object());
  // What is not quantised, the tensors say.
  fields.ignore({"ignore", "global_compression_ratio", "version"});
  const nlohmann::json& groups = fields.require("config_groups");
  if (!groups.is_object() || groups.empty()) fields.refuse("config_groups", "should name a group");
  for (const auto& [name, value] : groups.items()) {
    ConfigFields group(value, fields.source(), "quantization_config.config_groups." + name + ".");
    // Activations are not quantised here: more exact than what the scheme asks for.
    group.ignore({"targets", "input_activations", "output_activations", "format"});
    ConfigFields weights(group.require("weights"), fields.source(),
                         "quantization_config.config_groups." + name + ".weights.");
    config.schemes.push_back(read_compressed_scheme(weights));
    weights.refuse_unknown();
    group.refuse_unknown();
  }
  return config;
}

std::string describe(const WeightScheme& scheme) {
  const std::string type =
      scheme.is_float ? "FP8" : fmt::format("int{}", scheme.bits);
  const std::string zeros = scheme.symmetric ? "" : " with zero points";
  if (scheme.block_rows > 0) {
    return fmt::format("{} in blocks of {} x {}", type, scheme.block_rows, scheme.block_cols);
  }
  if (scheme.whole_tensor) return fmt::format("{} per tensor", type);
  if (scheme.group_size == 0) return fmt::format("{} per row{}", type, zeros);
  return fmt::format("{} in groups of {}{}", type, scheme.group_size, zeros);
}

}  // namespace

QuantizationConfig read_quantization_config(ConfigFields& config) {
  // Before it was renamed, compressed-tensors wrote compression_config.
  const char* name = config.find("quantization_config") != nullptr || !config.has("compression_config")
                         ? "quantization_config"
                         : "compression_config";
  const nlohmann::json* value = config.find(name);
  if (value == nullptr) return {};
  ConfigFields fields(*value, config.source(), std::string(name) + ".");
  const std::string method = fields.text("quant_method");
  QuantizationConfig quantization;
  if (method == "fp8") {
    quantization = read_fp8(fields);
  } else if (method == "compressed-tensors") {
    quantization = read_compressed(fields);
  } else if (method == "awq") {
    quantization = read_awq(fields);
  } else if (method == "gptq") {
    quantization = read_gptq(fields);
  } else {
    fields.refuse("quant_method", "supported are fp8, compressed-tensors, awq and gptq");
  }
  fields.refuse_unknown();
  return quantization;
}

QuantizationConfig read_quantization_config(const std::string& dir) {
  const std::string path = dir + "/config.json";
  if (!path_exists(path)) return {};
  const nlohmann::json json = parse_strict_json(read_small_file(path, kMaxConfigBytes), path);
  ConfigFields fields(json, path);
  return read_quantization_config(fields);
}

std::string describe(const QuantizationConfig& config) {
  std::string schemes;
  for (const WeightScheme& scheme : config.schemes) {
    schemes += (schemes.empty() ? "" : ", ") + describe(scheme);
  }
  switch (config.method) {
    case QuantizationMethod::kNone:
      return "";
    case QuantizationMethod::kFp8:
      return fmt::format("FP8 in blocks of {} x {}", config.block_rows, config.block_cols);
    case QuantizationMethod::kCompressedTensors:
      return "compressed-tensors: " + schemes;
    case QuantizationMethod::kAwq:
      return "AWQ: " + schemes;
    case QuantizationMethod::kGptq:
      return "GPTQ: " + schemes;
  }
  SHOAL_CHECK(false, "method {}", static_cast<int>(config.method));
}

}  // namespace shoal
