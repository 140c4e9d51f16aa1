// Engine: the loop of rank 0: schedule -> broadcast -> run -> sample -> emit. The front end's service
// on rank 0 feeds it from any thread; events come out on the engine's thread.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "parallel/process_group.h"
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
  // Replicated tokens cost one all-reduce of tokens x hidden, whatever top_k is; dispatch and combine
  // move top_k copies of each token but split the experts' row work: worth it for large steps only.
  int32_t all_to_all_min_tokens = 256;
};

struct EngineStats {
  SchedulerStats scheduler;
  uint64_t steps = 0;
  // Since start. Prompt tokens that were run: cached ones are not counted, recomputed ones are.
  int64_t prompt_tokens = 0, generated_tokens = 0;
  double last_step_seconds = 0;
};

class Engine {
 public:
  // All three must outlive the engine. Called with every step's events, in order, on the thread of
  // run(); must not block for long and must not call back into the engine except submit and cancel.
  using EventSink = std::function<void(std::vector<TokenEvent>)>;
  Engine(EngineConfig config, ProcessGroup& group, StepRunner& runner, EventSink sink);

  // Thread-safe. A request that can never run is answered by a kError event.
  void submit(Request request);
  // Takes effect before the next step; answered by a kAbort event unless the request has ended.
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
  void step(StepPlan& plan);
  std::vector<SampleInput> sample_inputs(const StepPlan& plan) const;
  void publish_stats(const StepPlan* plan, size_t num_sampled, double seconds);

  const EngineConfig config_;
  ProcessGroup& group_;
  StepRunner& runner_;
  EventSink sink_;
  Scheduler scheduler_;  // of run()'s thread, as all that is not guarded
  uint64_t last_step_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Request> submitted_;    // guarded by mutex_
  std::vector<RequestId> cancelled_;  // guarded by mutex_
  bool stopping_ = false;             // guarded by mutex_
  EngineStats stats_;                 // guarded by mutex_
};

// What ranks other than 0 do: receive plans and run them until the shutdown plan.
void run_worker(ProcessGroup& group, StepRunner& runner);

}  // namespace shoal
