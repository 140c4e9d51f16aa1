// EngineClient: what the front end sees of the ranks. Implemented over engine.proto by
// server/engine_supervisor (which starts the ranks and, when they die, starts them again and submits
// every unfinished request anew), and by a fake in the tests of the services.
//
// Thread-safe. Event callbacks come on the client's own thread, one at a time, in order; they must not
// block for long and must not call submit or cancel on the same thread while holding locks that those
// callbacks take.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/engine/rank_report.h"
#include "runtime/request/request.h"
#include "runtime/offload/offload_stats.h"
#include "runtime/scheduler/tier_stats.h"

namespace shoal {

enum class EngineState { kStarting, kLoading, kReady, kRestarting, kFailed, kStopped };

// What one rank's plan has for one use of memory, and what that took; bytes.
struct MemoryTaken {
  std::string use;
  uint64_t planned = 0, taken = 0;
};

struct EngineStatus {
  EngineState state = EngineState::kStarting;
  std::string detail;  // "loading 40 %", or why it failed
  uint64_t bytes_read = 0, bytes_total = 0;
  int32_t world_size = 0;
  int32_t max_model_len = 0;
  int64_t kv_tokens = 0;
  uint64_t weight_bytes = 0, kv_cache_bytes = 0;
  double load_seconds = 0;
  std::vector<std::string> ranks;
  std::vector<std::vector<MemoryTaken>> memory;  // of each rank, every use
  int64_t unfinished = 0;  // requests that were submitted and have not had their last event
  int64_t running = 0, waiting = 0, pages_total = 0, pages_used = 0;
  int64_t prefix_queries = 0, prefix_hits = 0, preemptions = 0;
  TierStats tiers;
  OffloadStats offload;  // of rank 0 since its start
  uint64_t steps = 0;
  int64_t prompt_tokens = 0, generated_tokens = 0;
  BucketCounts<kStepTokenBounds.size()> step_tokens;
  BucketCounts<kStepSecondsBounds.size()> step_seconds;
  double last_step_seconds = 0;
  double prompt_token_seconds = 0, decode_step_seconds = 0;  // averages; 0: not measured yet
  std::vector<RankStats> rank_stats;  // since their start; empty before the first steps
  ExpertBalance experts;
  int restarts = 0;
};

class EngineClient {
 public:
  virtual ~EngineClient() = default;
  // Exactly one event with a finish_reason follows for every submitted request, whatever happens.
  // `on_event` is kept until then.
  virtual void submit(Request request, std::function<void(const TokenEvent&)> on_event) = 0;
  virtual void cancel(RequestId id) = 0;  // unknown ids are ignored
  virtual EngineStatus status() const = 0;
  // Called on every change of state (not for statistics).
  virtual void set_on_state(std::function<void(const EngineStatus&)> on_state) = 0;
};

}  // namespace shoal
