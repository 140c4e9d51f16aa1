// ModelRunner: one rank's share of a step: builds the device batch from a StepPlan, runs the model,
// returns the logits on rank 0.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "runtime/backend.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/engine/decode_graphs.h"
#include "runtime/engine/step_runner.h"
#include "runtime/model/model.h"
#include "runtime/scheduler/step_plan.h"

namespace shoal {

class ModelRunner : public StepRunner {
 public:
  // `rank` and `model` must outlive the runner. Allocates num_pages KV pages of kv_dtype (see
  // paged_kv_cache.h) and one for padding. dtype: of the model (F32 | BF16).
  ModelRunner(RankRuntime& rank, Model& model, const ParallelLayout& layout, DType dtype,
              DType kv_dtype, int32_t page_size, int32_t num_pages);

  // Collective. Runs the largest step that will come, with pages that belong to nobody, so that what
  // grows with a step (workspace, scratch, libraries' plans) has its size before the first request: a
  // later step then allocates nothing, and a GPU that is too small fails now and not under load.
  void warm_up(int64_t max_num_batched_tokens, int64_t max_num_seqs, int64_t max_model_len);

  // Collective. From then on pure decode steps of up to max_num_seqs sequences are replayed from
  // recorded graphs. False where the device has none.
  bool record_graphs(int64_t max_num_seqs, int64_t max_model_len,
                     const std::function<void(int done, int all)>& progress = {});

  // Logits come by the slices' dp_rank first, which is the plan's order.
  std::span<const float> run(const StepPlan& plan) override;
  std::vector<SampleResult> run_and_sample(const StepPlan& plan,
                                           std::span<const SampleInput> inputs) override;
  // The multi-token-prediction layer's logits after a run(): `plan` is that run's with every token
  // replaced by the one that follows it, positions unchanged (RoPE is relative: the layer's own cache
  // then has no gap at position 0). REQUIRES: the model has one loaded.
  std::span<const float> run_mtp(const StepPlan& plan);

  int32_t page_size() const { return page_size_; }
  int32_t num_pages() const { return num_pages_; }
  const PagedKvCache& kv_cache() const { return kv_cache_; }
  int64_t kv_cache_bytes() const { return kv_cache_.bytes(); }

 private:
  ModelBatch upload(const StepPlan& plan);
  // The rows of run() on rank 0's device, in one or several pieces; empty elsewhere.
  std::vector<Tensor> logits_on_device(const StepPlan& plan);
  std::span<const float> to_host(const std::vector<Tensor>& pieces);

  RankRuntime& rank_;
  Model& model_;
  const ParallelLayout layout_;
  DType dtype_;
  int32_t page_size_;
  int32_t num_pages_;
  PagedKvCache kv_cache_;
  std::unique_ptr<DecodeGraphs> graphs_;
  Tensor hidden_;  // of the last run(), [T, hidden], in the workspace
  std::vector<float> logits_;
};

}  // namespace shoal
