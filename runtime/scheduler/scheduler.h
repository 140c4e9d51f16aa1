// Scheduler: decides what each step runs. Pure: no device, no clock, no thread; the engine calls it
// from one thread. Continuous batching with chunked prefill: decodes first, then prompts in
// progress, then waiting ones, by priority and fair turns of the clients (FairQueue), while token
// budget, sequence slots and KV pages last. A sequence gets the pages of all its tokens when it is
// admitted and one more whenever it has filled one. When there is none, the running sequence of the
// same pool that ranks last (lowest priority, then latest first turn) is preempted: its pages are
// freed. It keeps its tokens, so its output does not change; its KV is recomputed later, or copied
// to slots of host memory and back, whichever costs less by the rates that the scheduler is told
// (set_costs). The first in rank is never preempted and fits its pool alone, so it always
// completes: no deadlock, no starvation within a priority.
//
// Pages come from one pool per DP rank (one pool without DP attention). A prompt's full pages are
// looked up in and entered into the prefix cache of its pool; pages with generated tokens are not,
// because those were computed by the other form of attention, and a request's bits must not depend
// on whether an earlier conversation is still cached. A prompt waits while a running one computes a
// page that both share (so that n > 1 computes its prompt once).
//
// Plans may run ahead: the next one may be made while one is not applied yet (its step runs, its
// tokens are not known). A sequence of that step gets a slice whose token is "what that step
// samples for it" (SequenceSlice::from_sample). One that will end by its length is known to; one
// that turns out to have ended by an end token, or is cancelled, leaves a dead slice behind, whose
// sample nobody awaits. Steps run in order on every device, so pages are given on, and found in the
// prefix cache, from the plan on that frees or fills them: whoever gets them comes in a later step.
//
// Below the pages lie tiers (runtime/cache/page_tiers.h): prompts' pages are spilled to host memory
// and to files, and restored from there instead of computed. A request whose pages have to be read
// from files waits for that before it is admitted, and others go on; pages come back in pieces of
// copies_per_step.
//
// A plan costs O(running + admitted), a look at every client for each one admitted, and a prefix lookup
// for the first request that must wait.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "runtime/request/request.h"
#include "runtime/scheduler/pool_tiers.h"
#include "runtime/scheduler/step_plan.h"

namespace shoal {

// What becomes of the KV of a sequence that is preempted: kAuto chooses by costs.
enum class PreemptionMode { kAuto, kSwap, kRecompute };

struct TierConfig {
  int32_t host_pages = 0;  // slots per pool, for preempted sequences and prompts; 0: none
  int64_t disk_pages = 0;  // files per pool
  std::vector<std::vector<PageKey>> on_disk;  // per pool, or empty: least recently used first
  // Pages that one plan copies for prompts each way, so that restoring a long one does not hold the
  // running ones up.
  int32_t copies_per_step = 64;
  PreemptionMode preemption = PreemptionMode::kAuto;
  // Until set_costs(): a page of 1 MB over PCIe at 5 GB/s, and 2,000 tokens of prompt a second.
  double page_copy_seconds = 2e-4;
  double token_seconds = 5e-4;
};

struct SchedulerConfig {
  int32_t max_num_seqs = 64;             // sequences in one step
  int32_t max_num_batched_tokens = 512;  // tokens in one step
  int32_t max_model_len = 2048;          // prompt + output of one sequence
  int32_t page_size = 16;                // tokens per KV page
  int32_t num_pages = 0;                 // per pool
  int32_t num_pools = 1;                 // DP ranks
  bool enable_prefix_caching = true;     // also in the tiers, where page_keys_supported()
  TierConfig tiers;
  std::vector<int32_t> eos_token_ids;
};

struct SchedulerStats {
  int64_t running = 0, waiting = 0;
  int64_t pages_total = 0, pages_used = 0;  // used: held by sequences (cached-but-free not counted)
  int64_t prefix_queries = 0, prefix_hits = 0;  // tokens
  int64_t preemptions = 0;
  TierStats tiers;
};

class Scheduler {
 public:
  // A sequence ends (kLength) where a pool ends, when that is before max_model_len.
  explicit Scheduler(SchedulerConfig config);
  ~Scheduler();

  // Throws InvalidInput when the request can never run (longer than max_model_len or than the
  // pool). Its id must not be in use. Outputs count from prompt_len, also those of a replayed
  // request.
  void add(Request request);
  // Frees its pages at once; false when it is unknown (finished, or never there).
  bool cancel(RequestId id);
  bool has_work() const;

  // The next step, or nothing to do (until the plan made before is applied, if it is not, or until
  // what loading() names is loaded). At most one plan may not be applied yet. Numbered from 1;
  // `exchange`, `ahead` and `ask` are left to the engine. A plan of kind kPages is no step: it is
  // not applied.
  std::optional<StepPlan> plan();

  // The ticket of the oldest load that is planned and not reported by loaded(); 0: none.
  uint64_t loading() const;
  // The first `count` pages of the load are in the slots of all ranks. REQUIRES: ticket ==
  // loading()
  void loaded(uint64_t ticket, int64_t count);
  // What copying a page and running a token of a prompt take, as measured. Pages go both ways.
  void set_costs(double page_copy_seconds, double token_seconds);

  // Plans are applied in order. `sampled`: for each slice of the plan with `sample`, in order, the
  // token chosen (and its logprobs); any for those that nobody awaits. Appends tokens, ends
  // sequences.
  struct Sampled {
    int32_t token = 0;
    std::optional<TokenLogprobs> logprobs;
  };
  std::vector<TokenEvent> apply(const StepPlan& plan, const std::vector<Sampled>& sampled);

  // Whether a request still wants the token that `step`, planned and not applied, samples for it:
  // it may have been cancelled, or have ended, since.
  bool awaits(RequestId id, uint64_t step) const;

  // Tokens (prompt and output) of a sequence: what penalties look at. Valid until apply or cancel.
  std::span<const int32_t> tokens(RequestId id) const;
  const Request& request(RequestId id) const;
  std::vector<RequestId> ids() const;  // of all unfinished requests

  SchedulerStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace shoal
