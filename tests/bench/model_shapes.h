// Models for bench_model: the published config.json of each, and how much of it one rank runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/model/model.h"

namespace shoal::bench {

struct ModelCase {
  std::string name;
  ModelConfig config;
  DType weights = DType::kBF16;  // of linears and experts; embedding, head and router are BF16
  ParallelLayout layout;         // which rank's share of how many
};

std::vector<ModelCase> model_cases(bool tiny);

}  // namespace shoal::bench
