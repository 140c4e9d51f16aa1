// Calibration: runs a model over a text and quantises its matrices with GPTQ. The hidden states of
// all tokens go through the model layer by layer, each twice: unquantised, to see the inputs of its
// matrices, and quantised, for what the next layer will see.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/backend.h"
#include "runtime/checkpoint/stored_weight.h"
#include "runtime/quantization/scheme.h"

namespace shoal {

// Holds one layer unquantised (FP8 as bfloat16) and quantised, the hidden states of all tokens, and
// of each matrix of the layer with inputs of its own k * k floats, or those inputs while there are
// fewer than k. Deterministic. REQUIRES: one rank.
class Calibration {
 public:
  // `tokens` are seen in windows of `window`. Throws InvalidInput for ids outside the vocabulary.
  Calibration(RankRuntime& rank, const std::string& model_dir, std::vector<int32_t> tokens,
              int window, QuantizationScheme scheme, int threads);
  ~Calibration();

  // `name`.weight, whose values are `base`'s. Layers have to come in order; a name of a layer that
  // does not run (the MTP layer) is rounded to nearest.
  std::unique_ptr<StoredWeight> quantize(const std::string& name,
                                         std::unique_ptr<StoredWeight> base);

 private:
  class Runner;

  std::unique_ptr<Runner> runner_;
  const QuantizationScheme scheme_;
};

}  // namespace shoal
