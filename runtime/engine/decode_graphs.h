// DecodeGraphs: pure decode steps as recorded device work. A step of some hundred kernels of a few
// microseconds each is bound by the host that issues them; a recorded one is issued by one call. One
// graph per batch bucket; a step is padded to the next bucket with sequences of one token in a page that
// belongs to nobody.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>

#include "runtime/backend.h"
#include "runtime/engine/step_batch.h"
#include "runtime/model/model.h"

namespace shoal {

// The logits of a step, which stay until the next one.
struct StepLogits {
  Tensor all;                 // [rows, padding included, vocab] F32 on rank 0; undefined elsewhere
  std::vector<int64_t> rows;  // of `all`, in the plan's order; on rank 0
};

class DecodeGraphs {
 public:
  // `cache` has num_pages + 1 pages: the last one is for padding. `rank`, `model` and `cache` must
  // outlive the graphs.
  DecodeGraphs(RankRuntime& rank, const Model& model, const ParallelLayout& layout,
               const KvCache& cache, int32_t num_pages, int64_t max_model_len, DType dtype);

  // Collective. Records a graph for every bucket up to max_num_seqs sequences a rank; false, and
  // nothing is recorded, on devices without graphs. progress(done, all) after each.
  bool record(int64_t max_num_seqs, const std::function<void(int, int)>& progress);

  // Whether run() takes this plan: one absorbed token and one row of logits for each sequence, no
  // exchange whose counts differ from step to step, and not more than the largest bucket.
  bool can_run(const StepPlan& plan) const;

  // Collective. `feed` is called when the step's numbers are on the device and before they are used.
  using Feed = std::function<void(const StepBatch& batch, const Tensor& memory)>;
  StepLogits run(const StepPlan& plan, const Feed& feed);

 private:
  struct Recorded {
    std::unique_ptr<DeviceGraph> graph;
    Tensor inputs;  // [numbers of the batch] I32, in inputs_
    Tensor logits;  // of the padded step, in the workspace: the same addresses at every replay
  };
  // Sequences of each DP rank in the plan (one entry without DP attention).
  std::vector<int64_t> sequences_per_rank(const StepPlan& plan) const;
  StepPlan padded(const StepPlan& plan, int64_t bucket) const;
  Recorded record_bucket(int64_t bucket);

  RankRuntime& rank_;
  const Model& model_;
  const ParallelLayout layout_;
  const KvCache& cache_;
  int32_t padding_page_;
  int64_t table_width_;  // pages of the longest sequence
  DType dtype_;
  Buffer inputs_;
  std::map<int64_t, Recorded> graphs_;  // by bucket: sequences a rank
};

// 1, 2, 4, 8, then in steps of 8, from 64 on of 16, up to max_num_seqs and 256 at most: padding wastes
// less than a quarter of a step from 4 sequences on, and a graph costs some MB and 100 ms.
std::vector<int64_t> decode_buckets(int64_t max_num_seqs);

}  // namespace shoal
