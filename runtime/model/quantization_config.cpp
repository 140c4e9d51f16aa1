#include "runtime/model/quantization_config.h"

#include <fmt/format.h>

#include "runtime/checkpoint/strict_json.h"
#include "runtime/model/config_fields.h"

namespace shoal {
namespace {

QuantizationConfig read_fp8(ConfigFields& fields) {
  fields.only("fmt", "e4m3");
  // Scales of activations: they are not quantised here.
  fields.only("activation_scheme", "dynamic");
  fields.ignore({"scale_fmt"});
  // What each tensor is, its own type says.
  fields.ignore({"modules_to_not_convert", "ignored_layers"});
  const nlohmann::json& block = fields.require("weight_block_size");
  constexpr uint64_t kMaxBlock = 8192;
  if (!block.is_array() || block.size() != 2) {
    fields.refuse("weight_block_size", "should be two integers, such as [128, 128]");
  }
  for (const auto& side : block) {
    if (!side.is_number_unsigned() || side.get<uint64_t>() < 1 ||
        side.get<uint64_t>() > kMaxBlock) {
      fields.refuse("weight_block_size", fmt::format("should be integers from 1 to {}", kMaxBlock));
    }
  }
  return {.method = QuantizationMethod::kFp8,
          .block_rows = block[0].get<int32_t>(),
          .block_cols = block[1].get<int32_t>()};
}

}  // namespace

QuantizationConfig read_quantization_config(ConfigFields& config) {
  const nlohmann::json* value = config.find("quantization_config");
  if (value == nullptr) return {};
  ConfigFields fields(*value, config.source(), "quantization_config.");
  fields.require("quant_method");
  fields.only("quant_method", "fp8");
  const QuantizationConfig quantization = read_fp8(fields);
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
  if (config.method == QuantizationMethod::kNone) return "";
  return fmt::format("FP8 in blocks of {} x {}", config.block_rows, config.block_cols);
}

}  // namespace shoal
