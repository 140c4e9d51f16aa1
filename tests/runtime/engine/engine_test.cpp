#include "runtime/engine/engine.h"

#include <catch2/catch.hpp>
#include <atomic>
#include <limits>
#include <thread>

#include "kernels/base/error.h"
#include "tests/runtime/engine/running_engine.h"
#include "tests/runtime/engine/thread_group.h"
#include "tests/runtime/fake_model.h"

namespace shoal {
namespace {

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
  // Both kinds of steps were among them; admission goes by what they took.
  REQUIRE(stats.prompt_token_seconds > 0);
  REQUIRE(stats.decode_step_seconds > 0);
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
