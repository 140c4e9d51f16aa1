// StepBatch: this rank's share of a StepPlan as the numbers that a step uploads, all of them in one
// piece of memory: one copy a step, at the same place for every step of a recorded graph.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/model/model.h"
#include "runtime/scheduler/step_plan.h"

namespace shoal {

class StepBatch {
 public:
  // Block tables get `table_width` columns, or as many as the longest needs if that is more.
  StepBatch(const StepPlan& plan, const ParallelLayout& layout, int32_t page_size,
            int64_t table_width = 1);

  const std::vector<int32_t>& numbers() const { return numbers_; }
  // Whether some of this rank's tokens are samples of the step before: token_ids holds them once they
  // have been fed from sources().
  bool has_sources() const { return has_sources_; }
  // For each of this rank's tokens the sample that it is, or -1. In `memory` as on_device() has it.
  Tensor sources(const Tensor& memory) const;  // [T] I32
  // The batch whose index tensors lie in `memory`, [numbers().size()] I32 on the device.
  ModelBatch on_device(const Tensor& memory) const;

 private:
  struct Section {
    int64_t begin = 0, size = 0;  // of numbers_
  };
  Section append(const std::vector<int32_t>& values);

  ModelBatch batch_;  // but for its tensors
  int32_t page_size_;
  int64_t num_sequences_ = 0, num_decode_sequences_ = 0, table_width_;
  bool has_sources_ = false;
  std::vector<int32_t> numbers_;
  Section token_ids_, sources_, positions_, slots_, logits_rows_, query_start_, context_len_, block_tables_;
};

}  // namespace shoal
