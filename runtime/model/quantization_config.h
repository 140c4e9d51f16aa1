// QuantizationConfig: the quantization_config of a config.json: how the weights of its checkpoint are
// packed. Which tensors are quantised, the tensors themselves say.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace shoal {

class ConfigFields;

enum class QuantizationMethod { kNone, kFp8 };

struct QuantizationConfig {
  QuantizationMethod method = QuantizationMethod::kNone;
  // kFp8 (DeepSeek): e4m3 with one scale per block.
  int32_t block_rows = 128, block_cols = 128;
};

// Takes quantization_config from the fields of a config.json. Throws InvalidInput naming method,
// field and value that are not supported.
QuantizationConfig read_quantization_config(ConfigFields& fields);
// Of `dir`/config.json; none without that file.
QuantizationConfig read_quantization_config(const std::string& dir);
// "FP8 in blocks of 128 x 128"; empty for none.
std::string describe(const QuantizationConfig& config);

}  // namespace shoal
