// Engine: the loop of rank 0: schedule -> broadcast -> run -> sample -> emit. The front end's
// service on rank 0 feeds it from any thread; events come out on the engine's thread.
//
// Where the runner's device works while the host goes on, the loop is one step ahead of it: while
// step n runs, step n+1 is planned, broadcast and queued, with n's tokens left for the devices to
// fill in; only then are n's tokens collected and applied, n+1's sampling queued (which needs
// them), and n emitted. A sequence that turns out to have ended with n has cost one row of n+1.
// Elsewhere each step is collected before the next is planned, in the same loop.
//
// Work on pages (copies to and from host memory, files) goes with the plans, before their step.
// What a rank has read from files is asked for with a plan, too, and the minimum over the ranks is
// what counts.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "parallel/process_group.h"
#include "runtime/engine/rank_report.h"
#include "runtime/engine/step_runner.h"
#include "runtime/request/request.h"
#include "runtime/scheduler/scheduler.h"

namespace shoal {

// Which way tokens reach their experts: kAuto takes all-to-all from all_to_all_min_tokens on.
enum class ExchangePolicy { kAuto, kReplicated, kAllToAll };

struct EngineConfig {
  SchedulerConfig scheduler;
  int32_t vocab_size = 0;  // token ids of requests are checked against it; > 0
  ExchangePolicy exchange = ExchangePolicy::kAuto;
  // Replicated tokens cost one all-reduce of tokens x hidden, whatever top_k is; dispatch and
  // combine move top_k copies of each token but split the experts' row work: worth it for large
  // steps only.
  int32_t all_to_all_min_tokens = 256;
  bool async_scheduling = true;  // run ahead, where the runner can
};

struct EngineStats {
  SchedulerStats scheduler;
  uint64_t steps = 0;
  // Since start. Prompt tokens that were run: cached ones are not counted, recomputed ones are.
  int64_t prompt_tokens = 0, generated_tokens = 0;
  OffloadStats offload;  // of rank 0
  double last_step_seconds =
      0;  // from the end of the step before, or its own begin if that is later
  // Averages of the latest steps: what a token of a prompt takes in steps that are mostly prompt and
  // at least half as large as steps may be, and a step that is mostly decoding. 0: none yet.
  double prompt_token_seconds = 0, decode_step_seconds = 0;
  BucketCounts<kStepTokenBounds.size()> step_tokens;    // since start
  BucketCounts<kStepSecondsBounds.size()> step_seconds;
  // Of every rank, and of their experts: as of the last report, which is made once a second while there
  // is work. Empty before the first.
  std::vector<RankStats> ranks;
  ExpertBalance experts;
};

class Engine {
 public:
  // All three must outlive the engine. Called with every step's events, in order, and without
  // events when a second of steps has given none, on the thread of run(); must not block for long
  // and must not call back into the engine except submit and cancel.
  using EventSink = std::function<void(std::vector<TokenEvent>)>;
  Engine(EngineConfig config, ProcessGroup& group, StepRunner& runner, EventSink sink);

  // Thread-safe. A request that can never run is answered by a kError event.
  void submit(Request request);
  // Takes effect before the next step is planned; answered by a kAbort event unless the request has
  // ended. A token that a running step samples for it is dropped.
  void cancel(RequestId id);
  EngineStats stats() const;

  // Runs until stop(); sleeps while there is nothing to do. Then ends every unfinished request with
  // kAbort and tells the other ranks to end. A DeviceFault or Bug of a step leaves it as an
  // exception; the other ranks are then for the caller to abort.
  void run();
  void stop();  // thread-safe

 private:
  bool take_inbox();
  void check_token_ids(const Request& request) const;
  ExpertExchange exchange_for(int64_t num_tokens) const;
  void turn();
  void move_pages(const StepPlan& plan);
  void measure(const StepPlan& plan, double seconds);
  void broadcast(const StepPlan& plan);
  std::vector<TokenEvent> finish();
  void drain();
  void emit(std::vector<TokenEvent> events);
  int32_t most_logprobs(const StepPlan& plan) const;
  std::vector<SampleInput> sample_inputs(const StepPlan& plan) const;
  void publish_stats(const StepPlan* plan, size_t num_sampled, double seconds);
  void begin_waiting(const StepPlan& plan);
  void end_waiting(TokenEvent& event);
  void report_at_rest();
  void publish_reports(const std::vector<RankReport>& reports);

  const EngineConfig config_;
  ProcessGroup& group_;
  StepRunner& runner_;
  EventSink sink_;
  Scheduler scheduler_;  // of run()'s thread, as all that is not guarded
  using Clock = std::chrono::steady_clock;
  struct Running {
    StepPlan plan;
    Clock::time_point begun;
  };
  std::optional<Running> running_;  // the step that was begun and sampled, and is not collected
  uint64_t last_step_ = 0;
  Clock::time_point last_end_{};
  Clock::time_point last_emit_{};
  bool only_loading_ = false;  // nothing to do until pages have been read
  // What the scheduler chooses between swapping and recomputing by; 0: not measured yet.
  double page_copy_seconds_ = 0, token_seconds_ = 0;
  double prompt_token_seconds_ = 0, decode_step_seconds_ = 0;  // EngineStats
  StepRunner::CopyTimes copy_times_;  // that went into page_copy_seconds_
  // Requests that have not had their first token.
  struct Waiting {
    Clock::time_point arrived;
    std::optional<double> queue_seconds;  // it has begun
  };
  std::unordered_map<RequestId, Waiting> waiting_;
  Clock::time_point last_report_{};
  RankStats own_;  // steps and step_seconds
  ExpertBalanceMeter balance_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  struct Submitted {
    Request request;
    Clock::time_point arrived;
  };
  std::vector<Submitted> submitted_;  // guarded by mutex_
  std::vector<RequestId> cancelled_;  // guarded by mutex_
  bool stopping_ = false;             // guarded by mutex_
  EngineStats stats_;                 // guarded by mutex_
};

// What ranks other than 0 do: receive plans and run them until the shutdown plan. When rank 0 runs
// ahead they do too, by one step; a failure of a step leaves it before the second step after that
// is begun.
void run_worker(ProcessGroup& group, StepRunner& runner);

}  // namespace shoal
