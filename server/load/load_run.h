// LoadRun: one measurement: sends a workload's requests when they are due, keeps what each became.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <queue>
#include <string>
#include <vector>

#include "server/load/load_client.h"
#include "server/load/workload.h"

namespace shoal {

// What one request became.
struct LoadOutcome {
  LoadAnswer answer;  // without ids and text
  double start = 0;   // seconds from the start of the run
  double lag = 0;     // seconds that it was sent later than due, though nothing held it back
  double queued = 0;  // seconds that it waited for --max-concurrency
  int32_t asked_tokens = 0;
  bool had_deadline = false;
};

// A second of the run.
struct LoadSecond {
  int64_t sent = 0, completed = 0, failed = 0, tokens = 0;
  int32_t concurrency = 0;  // the most at once
};

struct LoadRecord {
  std::vector<LoadOutcome> outcomes;  // in the order of their ends
  std::vector<LoadSecond> seconds;
  double duration = 0;     // from the first request until the last answer
  double cpu_seconds = 0;  // of this process
  int32_t peak_concurrency = 0;
  bool interrupted = false;
};

class LoadRun {
 public:
  // `client` and `workload` must outlive it. `detokenize`: for Chat, where prompts are text; else
  // empty.
  LoadRun(const BenchServeOptions& options, LoadClient& client, Workload& workload,
          std::function<std::string(const std::vector<int32_t>&)> detokenize);

  // Warm-up requests, whose outcome is not kept; throws InvalidInput when one fails.
  void warm_up(int count);
  // Blocks until every answer is there. `progress` (may be empty) is called some ten times a second
  // with requests done so far. `stop` true: nothing more is sent; what runs is waited for.
  LoadRecord run(const std::function<void(int64_t done)>& progress, const std::atomic<bool>& stop);

 private:
  struct Conversation {
    LoadSession session;
    size_t turn = 0;
    std::vector<int32_t> history;
    std::vector<std::pair<std::string, std::string>> messages;
    LoadTime due{};
  };
  struct Later {
    bool operator()(const std::shared_ptr<Conversation>& a,
                    const std::shared_ptr<Conversation>& b) const {
      return a->due > b->due;
    }
  };
  struct Finished {
    std::shared_ptr<Conversation> conversation;
    LoadOutcome outcome;
  };

  LoadCall next_call(Conversation* conversation) const;
  void send(std::shared_ptr<Conversation> conversation, LoadTime could_have);
  void settle(Finished finished);
  LoadSecond& second(double at);

  const BenchServeOptions options_;
  LoadClient& client_;
  Workload& workload_;
  const std::function<std::string(const std::vector<int32_t>&)> detokenize_;

  // Of the thread in run().
  LoadTime begin_{}, slot_free_{};
  LoadRecord record_;
  std::priority_queue<std::shared_ptr<Conversation>, std::vector<std::shared_ptr<Conversation>>,
                      Later>
      due_;
  int32_t running_ = 0;
  uint64_t sent_ = 0;

  std::vector<std::atomic<uint32_t>> tokens_;  // by second
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Finished> finished_;  // guarded by mutex_
};

}  // namespace shoal
