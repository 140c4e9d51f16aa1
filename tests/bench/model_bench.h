// Whole models with made-up weights: what the engine's steps take, beside what their bytes and
// FLOPs allow.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/bench/meter.h"
#include "tests/bench/model_shapes.h"

namespace shoal::bench {

struct ModelRow {
  std::string model, weights, step;  // step: "decode, batch 8, graphs"
  int64_t tokens = 0;                // of the step
  double seconds = 0;                // of the step on the host's clock: upload, model, logits back
  double limit_seconds = 0;          // bytes / bandwidth or FLOPs / rate, the greater
};

struct ModelBenchOptions {
  std::string device = "cpu";
  MeterOptions meter;
  std::string only;  // models whose "name weights" contains this
};

struct ModelReport {
  std::string device;
  double bandwidth = 0, math_rate = 0;
  std::vector<ModelRow> rows;
  std::vector<std::string> skipped;  // models that do not fit, and why
  nlohmann::json json() const;
};

// Prints the table as it goes. A model that does not fit the device is skipped by name.
ModelReport run_models(const ModelBenchOptions& options);

}  // namespace shoal::bench
