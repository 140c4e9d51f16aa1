// Calibration: runs a model over a text and quantises its matrices with GPTQ, layer by layer: each
// layer sees the inputs that the quantised layers before it make.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/backend.h"
#include "runtime/checkpoint/stored_weight.h"
#include "runtime/quantization/scheme.h"

namespace shoal {

// Holds the whole model unquantised (FP8 as bfloat16), and of one layer the inputs' sums: experts * k *
// k floats. Deterministic. REQUIRES: one rank.
class Calibration {
 public:
  // `tokens` are seen in windows of `window`. Throws InvalidInput for ids outside the vocabulary.
  Calibration(RankRuntime& rank, const std::string& model_dir, std::vector<int32_t> tokens,
              int window, QuantizationScheme scheme, int threads);
  ~Calibration();

  // `name`.weight, whose values are `base`'s. Names have to come by layer; a name of a layer that does
  // not run (the MTP layer) is rounded to nearest.
  std::unique_ptr<StoredWeight> quantize(const std::string& name,
                                         std::unique_ptr<StoredWeight> base);

 private:
  class Runner;

  std::unique_ptr<Runner> runner_;
  const QuantizationScheme scheme_;
  const int threads_;
  int64_t layer_ = -1;
  std::string factor_of_;  // whose factor factor_ is: gate and up share one
  std::vector<float> factor_;
};

}  // namespace shoal
