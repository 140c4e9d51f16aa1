// ModelRunner: one rank's share of a step: builds the device batch from a StepPlan, runs the model,
// returns the logits on rank 0.
#pragma once

#include <vector>

#include "runtime/backend.h"
#include "runtime/model/model.h"
#include "runtime/scheduler/step_plan.h"

namespace shoal {

class ModelRunner {
 public:
  // `rank` and `model` must outlive the runner.
  ModelRunner(RankRuntime& rank, Model& model, int32_t page_size, int32_t num_pages);

  // Rank 0: the logits of every sampled slice's last row (of every row of an all_logits slice), in
  // plan order: [rows, vocab], host memory valid until the next call. Other ranks: empty.
  // A collective call: all ranks run the same plan.
  std::span<const float> run(const StepPlan& plan);

  int32_t page_size() const { return page_size_; }
  int32_t num_pages() const { return num_pages_; }
  int64_t kv_cache_bytes() const { return kv_cache_bytes_; }

 private:
  RankRuntime& rank_;
  Model& model_;
  int32_t page_size_;
  int32_t num_pages_;
  int64_t kv_cache_bytes_ = 0;
  Buffer kv_memory_;
  KvCache kv_cache_;
  std::vector<float> logits_;
};

}  // namespace shoal
