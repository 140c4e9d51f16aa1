// What the kernel bench measures: models by the shapes of their verbs, and how many tokens.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/ops.h"

namespace shoal::bench {

struct LinearShape {
  std::string name;
  int64_t n, k;
};

// One rank's share of a model.
struct ModelShape {
  std::string name;
  int64_t hidden = 0, vocab = 0, heads = 0;
  int64_t kv_heads = 0;  // 0: MLA
  std::vector<LinearShape> linears;
  std::vector<DType> weights;  // the types that linears and experts are measured in
  int64_t experts = 0, local_experts = 0, expert_inner = 0;  // 0: dense
  RouterSpec router;
};

struct KernelPlan {
  std::vector<ModelShape> models;
  std::vector<int64_t> linear_rows;
  std::vector<int64_t> tokens;    // of the verbs on rows, the router and the experts
  std::vector<int64_t> batches;   // attention, decode: with each of
  std::vector<int64_t> contexts;  //   these contexts
  std::vector<std::pair<int64_t, int64_t>> prefills;  // attention: {tokens, context}
};

KernelPlan gpu_plan();
KernelPlan cpu_plan();  // what a CPU does in minutes
// The same rows with no dimension above some dozens.
KernelPlan tiny(KernelPlan plan);

}  // namespace shoal::bench
