// StepRunner: what the engine needs of a rank's model: the steps of plans. Implemented by
// ModelRunner, and by models of a few lines in the tests of the engine.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/engine/rank_report.h"
#include "runtime/offload/offload_stats.h"
#include "runtime/sampling/sampler.h"
#include "runtime/scheduler/step_plan.h"

namespace shoal {

// How the next token of a sampled slice is chosen: the arguments of sample(). Without params:
// nobody wants the token any more.
struct SampleInput {
  const SamplingParams* params = nullptr;
  std::span<const int32_t> tokens;
  int32_t prompt_len = 0;
  std::vector<int32_t> end_token_ids;
};

// A step is begin(), on rank 0 then sample() and collect(). A runner whose device works while the
// host goes on may be given the next step's begin() before this step's collect(): begin(n),
// sample(n), begin(n+1), collect(n), sample(n+1), begin(n+2), .. What sample() needs of the host
// (tokens so far) is then known in time, because collect() of the step before has been called.
class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // Rank 0: the logits of every sampled slice's last row (of every row of an all_logits slice), in
  // the plan's order: [rows, vocab], host memory valid until the next call. Other ranks: empty.
  // A collective call: all ranks run the same plan.
  virtual std::span<const float> run(const StepPlan& plan) = 0;

  // Whether begin(plan) and sample(), for requests that want at most `most_logprobs` logprobs, only
  // queue work, so that the next plan may come before collect(). Else rank 0 collects first; this
  // default's begin() is run(). The plan's own `ahead` is not looked at.
  virtual bool can_run_ahead(const StepPlan& plan, int32_t most_logprobs) const { return false; }
  // A collective call. Plans with slices from_sample follow their step directly.
  virtual void begin(const StepPlan& plan);
  // Rank 0: chooses a token for each sampled slice of the last begin(), `inputs` in the plan's
  // order. No slice has all_logits. What `inputs` refers to may go.
  virtual void sample(std::span<const SampleInput> inputs);
  // Rank 0: the result of the last sample(), in the order of its inputs (anything for those that
  // nobody wants). Waits for that step and not for what was queued after it; throws what it failed
  // with.
  virtual std::vector<SampleResult> collect();
  // The other ranks: waits for all that was begun, and throws what it failed with.
  virtual void wait() {}

  // What experts that are not on this rank's device have cost so far.
  virtual OffloadStats offload_stats() const { return {}; }

  // What this rank has done so far, but for steps and step_seconds, which the engine counts.
  virtual RankReport report() const { return {}; }

  // Does, or queues, a plan's work on pages (copies, files): before its begin(), or alone
  // (StepKind::kPages). This default can do none.
  virtual void move_pages(const StepPlan& plan);
  // How many of a load's pages are there on this rank, in order, once it has ended; -1 before. A
  // rank that has no part in it says kNotMine. Tickets before this one may be forgotten.
  static constexpr int64_t kNotMine = INT64_MAX;
  virtual int64_t loaded(uint64_t ticket) { return kNotMine; }
  // Pages whose copies were timed so far, both ways, and what they took.
  struct CopyTimes {
    int64_t pages = 0;
    double seconds = 0;
  };
  virtual CopyTimes copy_times() const { return {}; }

 private:
  std::span<const float> logits_;
  std::vector<SampleResult> results_;
};

// sample() of each input on its row of logits.
std::vector<SampleResult> sample_rows(std::span<const float> logits,  // [inputs, vocab]
                                      std::span<const SampleInput> inputs);

}  // namespace shoal
