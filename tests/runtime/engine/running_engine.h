// What the engine's tests share: a small configuration, requests, a sink that waits, an engine that runs.
#pragma once

#include <catch2/catch.hpp>
#include <future>
#include <map>
#include <mutex>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/engine/engine.h"

namespace shoal {

inline constexpr int32_t kVocab = 40;

inline EngineConfig small_config() {
  EngineConfig config;
  config.scheduler.max_num_seqs = 8;
  config.scheduler.max_num_batched_tokens = 32;
  config.scheduler.max_model_len = 200;
  config.scheduler.page_size = 4;
  config.scheduler.num_pages = 60;
  config.vocab_size = kVocab;
  return config;
}

inline Request make_request(RequestId id, int32_t max_tokens) {
  Request request;
  request.id = id;
  for (int32_t i = 0; i < 10 + static_cast<int32_t>(id % 7); ++i) {
    request.tokens.push_back(static_cast<int32_t>((id * 5 + static_cast<RequestId>(i) * 3) % kVocab));
  }
  request.prompt_len = static_cast<int32_t>(request.tokens.size());
  request.sampling.max_tokens = max_tokens;
  request.sampling.temperature = 0;
  return request;
}

// Collects events and lets a test wait for ends.
class Sink {
 public:
  Engine::EventSink sink() {
    return [this](std::vector<TokenEvent> events) {
      const std::lock_guard lock(mutex_);
      for (TokenEvent& e : events) {
        SHOAL_CHECK(!ends_.contains(e.id), "an event after the end");
        if (e.token) tokens_[e.id].push_back(*e.token);
        if (e.finish_reason != FinishReason::kNone) ends_[e.id] = e;
      }
      changed_.notify_all();
    };
  }
  void wait_for_ends(size_t n) {
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, std::chrono::seconds(60), [&] { return ends_.size() >= n; }));
  }
  void wait_for_token(RequestId id) {
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, std::chrono::seconds(60), [&] { return tokens_.contains(id); }));
  }
  std::map<RequestId, TokenEvent> ends() {
    const std::lock_guard lock(mutex_);
    return ends_;
  }
  std::vector<int32_t> tokens(RequestId id) {
    const std::lock_guard lock(mutex_);
    return tokens_[id];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, std::vector<int32_t>> tokens_;
  std::map<RequestId, TokenEvent> ends_;
};

class RunningEngine {
 public:
  RunningEngine(EngineConfig config, ProcessGroup& group, StepRunner& runner, Sink& sink)
      : engine(config, group, runner, sink.sink()), done_(std::async(std::launch::async, [this] {
          engine.run();
        })) {}
  ~RunningEngine() { engine.stop(); }
  void stop() {
    engine.stop();
    join();
  }
  void join() { done_.get(); }  // throws what run() threw

  Engine engine;

 private:
  std::future<void> done_;
};

}  // namespace shoal
