// Writes checkpoints of a model's true shape with made-up weights, for measuring what no download can be had
// for: how one loads, serves and fits. The values are random and of a size that keeps activations of order
// one; what such a model says means nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace shoal::bench {

struct MakeModelOptions {
  std::string config;          // the text of config.json, without quantization_config
  std::string scheme = "int4"; // bf16 | int4 (compressed-tensors, symmetric groups of 128, or of 64, 32 or 16
                               // where those divide) | int8 (compressed-tensors, one scale a row) |
                               // fp8 (DeepSeek's blocks of 128 x 128)
  std::string out;             // folder; made when missing. Files of the same names are replaced
  std::string tokenizer;       // tokenizer.json to put beside; empty: none
  uint64_t shard_bytes = uint64_t{2} << 30;
  uint64_t seed = 1;
};

// Streams: memory of some MB, whatever the model's size. progress(bytes written, bytes in all). Throws
// InvalidInput for a bad option or config, and for a file that cannot be written.
void make_model(const MakeModelOptions& options,
                const std::function<void(uint64_t done, uint64_t all)>& progress = {});

}  // namespace shoal::bench
