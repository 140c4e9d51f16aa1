// ModelRunner: one rank's share of a step: builds the device batch from a StepPlan, runs the model,
// returns the logits on rank 0, or tokens.
//
// On a GPU begin() and sample() only queue work. The tokens that rank 0 samples stay in device
// memory too (samples_): a next step that was planned without knowing them gets them from there, on
// the other ranks after a broadcast between devices.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "runtime/backend.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/engine/decode_graphs.h"
#include "runtime/engine/page_store.h"
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

  // Collective. Runs the largest step that will come, with pages that belong to nobody, so that
  // what grows with a step (workspace, scratch, libraries' plans) has its size before the first
  // request: a later step then allocates nothing, and a GPU that is too small fails now and not
  // under load.
  void warm_up(int64_t max_num_batched_tokens, int64_t max_num_seqs, int64_t max_model_len);

  // Collective. From then on pure decode steps of up to max_num_seqs sequences are replayed from
  // recorded graphs. False where the device has none.
  bool record_graphs(int64_t max_num_seqs, int64_t max_model_len,
                     const std::function<void(int done, int all)>& progress = {});

  // Logits come by the slices' dp_rank first, which is the plan's order.
  std::span<const float> run(const StepPlan& plan) override;

  // Where routed experts live that the device does not hold: told of each step's end. Must outlive
  // the runner.
  void set_offload(ExpertStore* store) { offload_ = store; }
  OffloadStats offload_stats() const override;
  RankReport report() const override;

  // False on the CPU, with experts off the device, before warm_up(), with the
  // multi-token-prediction layer, and where the host has to see what the step computes: to sample
  // more logprobs than the device can, to exchange experts all to all.
  bool can_run_ahead(const StepPlan& plan, int32_t most_logprobs) const override;
  // On other ranks begin() also waits for the step before, so that no rank is more than one step
  // ahead.
  void begin(const StepPlan& plan) override;
  void sample(std::span<const SampleInput> inputs) override;
  std::vector<SampleResult> collect() override;
  void wait() override;

  // What plans' work on pages is done with; without it they may have none.
  void set_page_store(std::unique_ptr<PageStore> pages) { pages_ = std::move(pages); }
  PageStore* page_store() const { return pages_.get(); }
  void move_pages(const StepPlan& plan) override;
  int64_t loaded(uint64_t ticket) override;
  CopyTimes copy_times() const override;

  // The multi-token-prediction layer's logits after a run(): `plan` is that run's with every token
  // replaced by the one that follows it, positions unchanged (RoPE is relative: the layer's own
  // cache then has no gap at position 0). REQUIRES: the model has one loaded.
  std::span<const float> run_mtp(const StepPlan& plan);

  int32_t page_size() const { return page_size_; }
  int32_t num_pages() const { return num_pages_; }
  const PagedKvCache& kv_cache() const { return kv_cache_; }
  int64_t kv_cache_bytes() const { return kv_cache_.bytes(); }

 private:
  bool can_sample_on_device(int32_t most_logprobs) const;
  Tensor samples() const;  // all of samples_
  // Collective, when the plan needs them: every rank gets the last step's tokens.
  void share_samples(int64_t count);
  void feed(const StepBatch& batch, const Tensor& memory);
  ModelBatch upload(const StepPlan& plan);
  StepLogits queue(const StepPlan& plan);
  std::span<const float> to_host(const StepLogits& logits);
  template <typename Work>
  auto naming_steps(const Work& work);

  RankRuntime& rank_;
  Model& model_;
  const ParallelLayout layout_;
  DType dtype_;
  int32_t page_size_;
  int32_t num_pages_;
  PagedKvCache kv_cache_;
  std::unique_ptr<PageStore> pages_;
  std::unique_ptr<DecodeGraphs> graphs_;
  ExpertStore* offload_ = nullptr;
  Tensor hidden_;  // of the last run(), [T, hidden], in the workspace
  std::vector<float> host_logits_;

  Buffer samples_;  // [max_num_seqs] I32: the last sample()'s tokens; empty before warm_up()
  int64_t num_samples_ = 0;          // of the last step queued
  uint64_t queued_ = 0, ended_ = 0;  // steps: the last one queued, the last one known to have ended
  StepLogits logits_;                // of the last begin()
  std::unique_ptr<DeviceEvent> end_of_queued_;
  struct Sampling {
    uint64_t step = 0;
    std::unique_ptr<DeviceEvent> end_of_step;
    std::vector<size_t> rows;           // of results: those the device samples
    std::vector<SampleResult> results;  // of sample()'s inputs
  } sampling_;                          // of the last sample()
};

}  // namespace shoal
