// Plans of published models, for the tests of runtime/memory.
#pragma once

#include <string>

#include "runtime/memory/known_models.h"
#include "runtime/memory/memory_plan.h"

namespace shoal {

inline ModelConfig published(const std::string& name) {
  const KnownModel* model = find_known_model(name);
  SHOAL_CHECK(model != nullptr, "{}", name);
  return parse_model_config(model->config, name);
}

inline DeviceSpec device_named(const std::string& name) { return parse_gpus(name).device; }

}  // namespace shoal
