#include "runtime/engine/engine.h"

#include <catch2/catch.hpp>
#include <atomic>
#include <future>
#include <limits>
#include <map>
#include <thread>

#include "kernels/base/error.h"
#include "tests/runtime/engine/thread_group.h"
#include "tests/runtime/fake_model.h"

namespace shoal {
namespace {

constexpr int32_t kVocab = 40;

EngineConfig small_config() {
  EngineConfig config;
  config.scheduler.max_num_seqs = 8;
  config.scheduler.max_num_batched_tokens = 32;
  config.scheduler.max_model_len = 200;
  config.scheduler.page_size = 4;
  config.scheduler.num_pages = 60;
  config.vocab_size = kVocab;
  return config;
}

Request make_request(RequestId id, int32_t max_tokens) {
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

TEST_CASE("requests from many threads give what each gives alone") {
  const EngineConfig config = small_config();
  ThreadGroup threads(1);
  ThreadGroup::Member group(threads, 0);
  FakeModel model(config.scheduler, kVocab);
  Sink sink;
  RunningEngine running(config, group, model, sink);
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 0; i < 100; ++i) {
        running.engine.submit(make_request(static_cast<RequestId>(c * 100 + i), 1 + i % 30));
      }
    });
  }
  for (std::thread& t : clients) t.join();
  sink.wait_for_ends(400);
  running.stop();
  int64_t generated = 0;
  for (RequestId id = 0; id < 400; ++id) {
    const Request r = make_request(id, 1 + static_cast<int32_t>(id % 100) % 30);
    REQUIRE(sink.tokens(id) == fake_serial(r, kVocab, 200, {}));
    generated += r.sampling.max_tokens;
  }
  const EngineStats stats = running.engine.stats();
  REQUIRE(stats.generated_tokens == generated);
  REQUIRE(stats.scheduler.pages_used == 0);
  REQUIRE(stats.steps > 0);
}

TEST_CASE("workers run every plan of rank 0, in order, and end with it") {
  EngineConfig config = small_config();
  config.all_to_all_min_tokens = 20;
  constexpr int kRanks = 3;
  struct Recorder : StepRunner {
    Recorder(StepRunner& r) : runner(r) {}
    std::span<const float> run(const StepPlan& plan) override {
      SHOAL_CHECK((plan.exchange == ExpertExchange::kAllToAll) == (plan.num_tokens() >= 20));
      plans.push_back(plan.serialize());
      return runner.run(plan);
    }
    StepRunner& runner;
    std::vector<std::vector<std::byte>> plans;
  };
  ThreadGroup threads(kRanks);
  std::vector<std::unique_ptr<FakeModel>> models;
  std::vector<std::unique_ptr<Recorder>> recorders;
  for (int r = 0; r < kRanks; ++r) {
    models.push_back(std::make_unique<FakeModel>(config.scheduler, kVocab));
    recorders.push_back(std::make_unique<Recorder>(*models.back()));
  }
  std::vector<std::thread> workers;
  for (int r = 1; r < kRanks; ++r) {
    workers.emplace_back([&, r] {
      ThreadGroup::Member group(threads, r);
      run_worker(group, *recorders[static_cast<size_t>(r)]);
    });
  }
  ThreadGroup::Member group(threads, 0);
  Sink sink;
  {
    RunningEngine running(config, group, *recorders[0], sink);
    for (RequestId id = 0; id < 50; ++id) running.engine.submit(make_request(id, 20));
    sink.wait_for_ends(50);
    running.stop();
  }
  for (std::thread& w : workers) w.join();
  REQUIRE(recorders[0]->plans.size() > 10);
  REQUIRE(recorders[1]->plans == recorders[0]->plans);
  REQUIRE(recorders[2]->plans == recorders[0]->plans);
}

TEST_CASE("cancel ends a request before the next step and frees its pages") {
  const EngineConfig config = small_config();
  ThreadGroup threads(1);
  ThreadGroup::Member group(threads, 0);
  FakeModel model(config.scheduler, kVocab);
  // Holds each step back until the test lets it go.
  struct Gate : StepRunner {
    Gate(StepRunner& r) : runner(r) {}
    std::span<const float> run(const StepPlan& plan) override {
      ++steps;
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return allowed > 0; });
      --allowed;
      return runner.run(plan);
    }
    void allow(int n) {
      const std::lock_guard lock(mutex);
      allowed += n;
      changed.notify_all();
    }
    StepRunner& runner;
    std::mutex mutex;
    std::condition_variable changed;
    int allowed = 0;
    std::atomic<int> steps = 0;
  } gate(model);
  Sink sink;
  RunningEngine running(config, group, gate, sink);
  running.engine.submit(make_request(1, 150));
  gate.allow(3);
  sink.wait_for_token(1);
  while (gate.steps < 4) std::this_thread::yield();  // inside the fourth step
  running.engine.cancel(1);
  running.engine.cancel(999);
  gate.allow(1);
  sink.wait_for_ends(1);
  REQUIRE(sink.ends().at(1).finish_reason == FinishReason::kAbort);
  REQUIRE(gate.steps == 4);
  REQUIRE(running.engine.stats().scheduler.pages_used == 0);
  // Stopping ends what is unfinished, once.
  running.engine.submit(make_request(2, 150));
  gate.allow(2);
  sink.wait_for_token(2);
  gate.allow(1000);
  running.stop();
  REQUIRE(sink.ends().at(2).finish_reason != FinishReason::kNone);
  REQUIRE(sink.ends().size() == 2);
}

TEST_CASE("requests that can never run are answered, their neighbours run on") {
  const EngineConfig config = small_config();
  ThreadGroup threads(1);
  ThreadGroup::Member group(threads, 0);
  FakeModel model(config.scheduler, kVocab);
  Sink sink;
  RunningEngine running(config, group, model, sink);
  std::vector<Request> bad;
  for (RequestId id = 1; id <= 6; ++id) bad.push_back(make_request(id, 5));
  bad[0].tokens[2] = kVocab;
  bad[1].tokens[0] = -1;
  bad[2].sampling.stop_token_ids = {151645};
  bad[3].sampling.logit_bias = {{std::numeric_limits<int32_t>::max(), 1.0f}};
  bad[4].tokens.resize(200, 1);
  bad[5].sampling.max_tokens = 0;
  running.engine.submit(make_request(100, 30));
  for (Request& r : bad) running.engine.submit(r);
  sink.wait_for_ends(7);
  running.stop();
  for (RequestId id = 1; id <= 6; ++id) {
    REQUIRE(sink.ends().at(id).finish_reason == FinishReason::kError);
    REQUIRE_FALSE(sink.ends().at(id).error.empty());
    REQUIRE(sink.tokens(id).empty());
  }
  REQUIRE(sink.tokens(100) == fake_serial(make_request(100, 30), kVocab, 200, {}));
}

TEST_CASE("a fault of a step leaves run() as it is") {
  const EngineConfig config = small_config();
  ThreadGroup threads(1);
  ThreadGroup::Member group(threads, 0);
  struct Broken : StepRunner {
    std::span<const float> run(const StepPlan&) override {
      logits.assign(kVocab, std::numeric_limits<float>::quiet_NaN());
      return logits;
    }
    std::vector<float> logits;
  } broken;
  Sink sink;
  RunningEngine running(config, group, broken, sink);
  running.engine.submit(make_request(1, 5));
  REQUIRE_THROWS_AS(running.join(), DeviceFault);
}

}  // namespace
}  // namespace shoal
