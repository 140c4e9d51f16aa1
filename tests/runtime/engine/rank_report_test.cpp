#include "runtime/engine/rank_report.h"

#include <catch2/catch.hpp>
#include <thread>

#include "tests/runtime/engine/running_engine.h"
#include "tests/runtime/engine/thread_group.h"
#include "tests/runtime/fake_model.h"

namespace shoal {
namespace {

RankReport report(std::vector<uint64_t> rows, uint64_t layers) {
  RankReport r;
  r.stats.steps = 5;
  r.stats.memory[1] = 77;
  r.layers = layers;
  r.expert_rows = std::move(rows);
  return r;
}

TEST_CASE("a report travels whole, and bytes that are none are refused") {
  const RankReport sent = report({1, 2, 3, 4}, 2);
  const std::vector<std::byte> bytes = sent.serialize();
  const RankReport got = RankReport::deserialize(bytes);
  REQUIRE(got.stats.steps == 5);
  REQUIRE(got.stats.memory[1] == 77);
  REQUIRE(got.layers == 2);
  REQUIRE(got.expert_rows == sent.expert_rows);
  for (size_t length : {size_t{0}, size_t{8}, bytes.size() - 1, bytes.size() - 8}) {
    REQUIRE_THROWS_AS(RankReport::deserialize(std::span(bytes).first(length)), Bug);
  }
  REQUIRE_THROWS_AS(RankReport::deserialize(report({1, 2, 3}, 2).serialize()), Bug);
  REQUIRE_THROWS_AS(RankReport::deserialize(report({1}, 0).serialize()), Bug);
}

TEST_CASE("balance compares experts of a layer over all ranks, and ranks") {
  ExpertBalanceMeter meter;
  meter.update(std::vector<RankReport>{report({}, 0)});
  REQUIRE(meter.balance().mean_imbalance == 0);
  // Two ranks with two experts each, two layers. Layer 0: 10 10 10 10; layer 1: 0 40 0 0.
  meter.update(std::vector<RankReport>{report({10, 10, 0, 40}, 2), report({10, 10, 0, 0}, 2)});
  const ExpertBalance& balance = meter.balance();
  REQUIRE(balance.mean_imbalance == Approx(2.5));
  REQUIRE(balance.worst_imbalance == Approx(4));
  REQUIRE(balance.worst_layer == 1);
  REQUIRE(balance.rank_imbalance == Approx(1.5));  // 60 and 20 rows
  REQUIRE(balance.idle_experts == 3);
  // Nothing new: what was stays, though it counts less.
  meter.update(std::vector<RankReport>{report({10, 10, 0, 40}, 2), report({10, 10, 0, 0}, 2)});
  REQUIRE(meter.balance().worst_imbalance == Approx(4));
  // Much that is even outweighs it.
  meter.update(std::vector<RankReport>{report({1010, 1010, 1000, 1040}, 2),
                                       report({1010, 1010, 1000, 1000}, 2)});
  REQUIRE(meter.balance().worst_imbalance < 1.1);
  REQUIRE(meter.balance().idle_experts == 0);
  REQUIRE_THROWS_AS(meter.update(std::vector<RankReport>{report({1, 1}, 1), report({1, 1}, 2)}),
                    Bug);
}

TEST_CASE("values go to the bucket whose bound they do not exceed") {
  BucketCounts<3> counts;
  const std::array<double, 3> bounds = {1, 10, 100};
  for (double v : {0.5, 1.0, 1.5, 10.0, 1000.0}) counts.add(bounds, v);
  REQUIRE(counts.counts == std::array<uint64_t, 4>{2, 2, 0, 1});
  REQUIRE(counts.sum == Approx(1013));
}

class Reporting : public FakeModel {
 public:
  Reporting(const SchedulerConfig& config, int rank) : FakeModel(config, kVocab), rank_(rank) {}
  RankReport report() const override {
    RankReport r;
    r.stats.resident_bytes = 100 + static_cast<uint64_t>(rank_);
    r.layers = 1;
    r.expert_rows = {1, 1};
    return r;
  }

 private:
  const int rank_;
};

TEST_CASE("rank 0 knows of all ranks when it comes to rest, and who waited how long") {
  const EngineConfig config = small_config();
  ThreadGroup threads(2);
  ThreadGroup::Member zero(threads, 0), one(threads, 1);
  Reporting model(config.scheduler, 0), other(config.scheduler, 1);
  std::thread worker([&] { run_worker(one, other); });
  std::mutex mutex;
  std::map<RequestId, std::vector<std::optional<double>>> queued;
  Sink ends;
  {
    Engine engine(config, zero, model, [&](std::vector<TokenEvent> events) {
      {
        const std::lock_guard lock(mutex);
        for (const TokenEvent& event : events) queued[event.id].push_back(event.queue_seconds);
      }
      ends.sink()(std::move(events));
    });
    std::thread run([&] { engine.run(); });
    for (RequestId id = 1; id <= 20; ++id) engine.submit(make_request(id, 8));
    ends.wait_for_ends(20);
    // The first report comes with the first step, and one at rest after a tenth of a second of
    // work.
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    engine.submit(make_request(21, 8));
    ends.wait_for_ends(21);
    const EngineStats stats = engine.stats();
    REQUIRE(stats.ranks.size() == 2);
    REQUIRE(stats.ranks[0].resident_bytes == 100);
    REQUIRE(stats.ranks[1].resident_bytes == 101);
    REQUIRE(stats.ranks[0].steps == stats.steps);
    REQUIRE(stats.ranks[1].steps == stats.steps);
    REQUIRE(stats.ranks[0].step_seconds > 0);
    REQUIRE(stats.experts.mean_imbalance == Approx(1));
    uint64_t steps = 0;
    for (uint64_t count : stats.step_tokens.counts) steps += count;
    REQUIRE(steps == stats.steps);
    engine.stop();
    run.join();
  }
  worker.join();
  double longest = 0;
  for (const auto& [id, times] : queued) {
    REQUIRE(times.size() == 8);
    for (size_t i = 0; i < times.size(); ++i) REQUIRE(times[i].has_value() == (i == 0));
    REQUIRE(*times[0] >= 0);
    longest = std::max(longest, *times[0]);
  }
  REQUIRE(longest > 0);
}

}  // namespace
}  // namespace shoal
