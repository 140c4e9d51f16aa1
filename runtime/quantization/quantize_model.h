// quantize_model: a checkpoint written again with its matrices quantised, a layer's share of memory at a
// time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "runtime/checkpoint/stored_weight.h"
#include "runtime/quantization/scheme.h"

namespace shoal {

struct QuantizeOptions {
  std::string input;   // folder in Hugging Face's layout
  std::string output;  // folder: new, empty, or left by an interrupted run with the same options
  QuantizationScheme scheme;
  uint64_t max_shard_bytes = uint64_t{4} << 30;  // a tensor larger than that has a shard of its own
  int threads = 1;
  // Calibrated schemes: the codes of `name`.weight, and all that decides them.
  std::function<std::unique_ptr<StoredWeight>(const std::string& name,
                                              std::unique_ptr<StoredWeight> base)> calibrated;
  std::string calibration_id;
};

// Bytes of the input that are done, and all of them; finished shards count at once.
using QuantizeProgress = std::function<void(uint64_t done, uint64_t total)>;

// Output: compressed-tensors' pack-quantized layout for integers, DeepSeek's FP8 blocks for fp8, with
// config.json's quantization_config, an index, and the other files of the folder copied. Throws
// InvalidInput: input that is quantised already or no folder, output that is not its own, files that
// cannot be written. Until it returns, `output` has no config.json.
void quantize_model(const QuantizeOptions& options, const QuantizeProgress& progress = {});

}  // namespace shoal
