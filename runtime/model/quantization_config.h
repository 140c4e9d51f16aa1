// QuantizationConfig: the quantization_config of a config.json: how the weights of its checkpoint are
// packed. Which tensors are quantised, the tensors themselves say.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shoal {

class ConfigFields;

enum class QuantizationMethod { kNone, kFp8, kCompressedTensors, kAwq, kGptq };

// What shares one scale.
struct WeightScheme {
  bool is_float = false;      // float8_e4m3; else integers
  int bits = 4;               // 4 or 8
  int64_t group_size = 0;     // columns of a row; 0: all of them
  bool whole_tensor = false;  // one scale for everything (is_float)
  int32_t block_rows = 0, block_cols = 0;  // blocks instead of groups (is_float); 0: groups
  bool symmetric = true;      // no zero points, or all of them 0

  // Columns of a group in a row of k.
  int64_t group_of(int64_t k) const { return group_size > 0 && group_size < k ? group_size : k; }
};

struct QuantizationConfig {
  QuantizationMethod method = QuantizationMethod::kNone;
  // kFp8 (DeepSeek): e4m3 with one scale per block.
  int32_t block_rows = 128, block_cols = 128;
  // The others: what weights may be; one for AWQ and GPTQ.
  std::vector<WeightScheme> schemes;
  // GPTQ's first format stores zero points less 1.
  int32_t gptq_zero_offset = 1;
  // GPTQ's desc_act: columns may be in groups in any order, as g_idx says.
  bool any_order = false;
};

// Takes quantization_config from the fields of a config.json. Throws InvalidInput naming method,
// field and value that are not supported.
QuantizationConfig read_quantization_config(ConfigFields& fields);
// Of `dir`/config.json; none without that file.
QuantizationConfig read_quantization_config(const std::string& dir);
// "FP8 in blocks of 128 x 128", "AWQ: int4 in groups of 128"; empty for none.
std::string describe(const QuantizationConfig& config);

}  // namespace shoal
