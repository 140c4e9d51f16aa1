// Engine: the loop of rank 0: schedule -> broadcast -> run -> sample -> emit. The front end's service
// on rank 0 feeds it from any thread; events come out on the engine's thread.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "parallel/process_group.h"
#include "runtime/engine/model_runner.h"
#include "runtime/request/request.h"
#include "runtime/scheduler/scheduler.h"

namespace shoal {

struct EngineStats {
  SchedulerStats scheduler;
  uint64_t steps = 0;
  int64_t prompt_tokens = 0, generated_tokens = 0;  // since start
  double last_step_seconds = 0;
};

class Engine {
 public:
  // All three must outlive the engine. Called with every step's events, in order, on the thread of
  // run(); must not block for long and must not call back into the engine except submit and cancel.
  using EventSink = std::function<void(std::vector<TokenEvent>)>;
  Engine(SchedulerConfig config, ProcessGroup& group, ModelRunner& runner, EventSink sink);

  // Thread-safe. A request that can never run is answered by a kError event.
  void submit(Request request);
  void cancel(RequestId id);  // takes effect before the next step; answered by a kAbort event
  EngineStats stats() const;

  // Runs until stop(); sleeps while there is nothing to do. Tells the other ranks to end when it
  // returns. A DeviceFault or Bug of a step leaves it as an exception.
  void run();
  void stop();  // thread-safe

 private:
  void take_inbox();
  void step(const StepPlan& plan);

  ProcessGroup& group_;
  ModelRunner& runner_;
  EventSink sink_;
  SchedulerConfig config_;
  Scheduler scheduler_;
  uint64_t steps_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Request> submitted_;    // guarded by mutex_
  std::vector<RequestId> cancelled_;  // guarded by mutex_
  bool stopping_ = false;             // guarded by mutex_
  EngineStats stats_;                 // guarded by mutex_
};

// What ranks other than 0 do: receive plans and run them until the shutdown plan.
void run_worker(ProcessGroup& group, ModelRunner& runner);

}  // namespace shoal
