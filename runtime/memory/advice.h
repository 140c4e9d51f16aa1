// Advice: the changes that make a plan fit, the smallest first, as flags to paste.
#pragma once

#include <string>
#include <vector>

#include "runtime/memory/rates.h"

namespace shoal {

struct Advice {
  std::string what;                // "store the weights as int4"
  std::vector<std::string> flags;  // to add to the command, or to put in place of what it has
  PlanOptions options;
  int gpus = 0;          // of the same kind; as many as there are unless `what` says more
  std::string model;     // another model's name, for distilled ones; else empty
  MemoryPlan plan;       // which fits
  double decode_tokens_per_s = 0;  // batch 1, 0 where the device's rates are unknown
};

struct AdviceRequest {
  PlanOptions options;
  PlanBudget budget;
  int gpus = 1;              // there are so many, of which options.ranks are used
  double utilization = 0.9;  // of each further one
  bool may_change_model = true;
  bool may_quantise = true;  // whether the command that reads the advice can
  bool may_offload = true;
};

// For a plan that does not fit: each change of its own that makes it fit, in the order of how little it
// takes away or costs: a shorter context, fewer sequences and tokens a step, an fp8 KV cache, weights in
// fp8, int8 or int4, more GPUs (up to a node's, or twice as many), experts in host memory; where none of the
// first does, quantisation on more GPUs; and the largest distilled model. What is smaller within a kind of
// change does not fit. Empty: nothing does.
std::vector<Advice> advise(Planner& planner, const AdviceRequest& request);

// The longest context (in steps of a page) whose plan fits; 0: none. REQUIRES: options.max_model_len = 0 or
// more than fits.
int64_t longest_context(Planner& planner, const PlanOptions& options, const PlanBudget& budget);

// "--quantization int4 --kv-cache-dtype fp8".
std::string join_flags(const std::vector<std::string>& flags);

}  // namespace shoal
