// What a quantised matrix becomes in a safetensors file: compressed-tensors' pack-quantized layout for
// integers (vLLM reads it), DeepSeek's blocks for FP8.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "runtime/checkpoint/stored_weight.h"

namespace shoal {

// One tensor to come, in the order of its bytes.
struct OutputTensor {
  std::string name;
  std::string type;  // "I32", ...
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
};

// The tensors that `module`.weight, of this form, becomes.
std::vector<OutputTensor> output_tensors(const std::string& module, const StoredWeight& weight);

// Gives the bytes of exactly those tensors, in order, to `write`. Holds the scales of the matrix and
// some rows for each of `threads` threads.
void write_weight(const StoredWeight& weight, int threads,
                  const std::function<void(std::span<const std::byte>)>& write);

}  // namespace shoal
