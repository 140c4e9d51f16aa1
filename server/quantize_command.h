// `shoal quantize`: writes a model again with its weights quantised.
#pragma once

#include <cstdint>
#include <string>

namespace shoal {

struct QuantizeCommandOptions {
  std::string model;              // --model: folder or org/name
  std::string revision = "main";  // --revision
  std::string output;             // --output
  std::string scheme = "int4";    // --scheme
  uint64_t max_shard_bytes = uint64_t{4} << 30;  // --max-shard-size
  int threads = 0;                // --threads; 0: all cores
  std::string device = "auto";    // --device: that runs the calibration
  std::string calibration;        // --calibration FILE: text for calibrated schemes; empty: our docs
  int calibration_tokens = 16384;  // --calibration-tokens
};

// Returns the exit code.
int run_quantize(const QuantizeCommandOptions& options);

}  // namespace shoal
