// What `shoal plan` says: for people and for programs.
#pragma once

#include <string>
#include <vector>

#include "runtime/memory/advice.h"

namespace shoal {

struct PlanReport {
  std::string model;        // as named
  std::string weights;      // "as published, FP8 in blocks of 128 x 128", "int4"
  int gpus = 1;             // devices that there are
  double utilization = 0.9; // 0: a limit in bytes was given
  MemoryPlan plan;
  std::vector<Advice> advice;  // where it does not fit
};

std::string plan_text(Planner& planner, const PlanReport& report);
std::string plan_json(Planner& planner, const PlanReport& report);

}  // namespace shoal
