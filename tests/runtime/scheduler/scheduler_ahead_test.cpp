// Plans that are made while the one before is not applied yet, as on a device that is one step behind.
#include <catch2/catch.hpp>
#include <map>
#include <utility>

#include "kernels/base/error.h"
#include "runtime/scheduler/scheduler.h"
#include "tests/runtime/fake_model.h"
#include "tests/runtime/scheduler/make_request.h"

namespace shoal {
namespace {

constexpr int32_t kVocab = 1000, kEnd = 900;

SchedulerConfig small_config() {
  SchedulerConfig config;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 16;
  config.max_model_len = 64;
  config.page_size = 4;
  config.num_pages = 64;
  config.eos_token_ids = {kEnd};
  return config;
}

std::vector<TokenEvent> apply(Scheduler& scheduler, const StepPlan& plan,
                              const std::vector<int32_t>& tokens) {
  std::vector<Scheduler::Sampled> sampled;
  for (int32_t token : tokens) sampled.push_back({token, std::nullopt});
  return scheduler.apply(plan, sampled);
}

TEST_CASE("ahead: a sequence goes on with the token that the running step samples for it") {
  Scheduler scheduler(small_config());
  scheduler.add(make_request(1, 3, 5));
  const StepPlan first = *scheduler.plan();
  scheduler.add(make_request(2, 3, 5, 100));
  const StepPlan second = *scheduler.plan();
  REQUIRE(second.slices.size() == 2);
  CHECK(second.slices[0].request == 1);
  CHECK(second.slices[0].first_position == 3);
  CHECK(second.slices[0].tokens.size() == 1);
  CHECK(second.slices[0].absorbed);
  CHECK(second.slices[0].sample);
  CHECK(second.slices[0].from_sample == 0);
  CHECK(second.slices[1].from_sample == -1);
  CHECK(scheduler.tokens(1).size() == 3);
  CHECK(scheduler.awaits(1, 1));
  CHECK(scheduler.awaits(1, 2));
  CHECK_FALSE(scheduler.awaits(1, 3));
  CHECK_FALSE(scheduler.awaits(2, 1));
  CHECK_THROWS_AS(scheduler.plan(), Bug);  // two are not applied
  CHECK_THROWS_AS(apply(scheduler, second, {7, 8}), Bug);  // the first one comes first
  CHECK(apply(scheduler, first, {7}).at(0).token == 7);
  CHECK_FALSE(scheduler.awaits(1, 1));
  CHECK(scheduler.tokens(1).back() == 7);
  const StepPlan third = *scheduler.plan();
  // Among the samples of the second, in the order of its slices.
  std::map<RequestId, int32_t> from;
  for (const SequenceSlice& s : third.slices) from[s.request] = s.from_sample;
  CHECK(from == std::map<RequestId, int32_t>{{1, 0}, {2, 1}});
  CHECK(apply(scheduler, second, {8, 9}).size() == 2);
  CHECK(scheduler.tokens(1).back() == 8);
  CHECK(scheduler.tokens(2).back() == 9);
  CHECK(apply(scheduler, third, {10, 11}).size() == 2);
  // With all applied, tokens are known.
  CHECK(scheduler.plan()->slices.at(0).tokens == std::vector<int32_t>{10});
}

TEST_CASE("ahead: samples are counted over the slices that sample, as the plan orders them") {
  SchedulerConfig config = small_config();
  config.num_pools = 2;
  config.max_num_batched_tokens = 64;
  Scheduler scheduler(config);
  FakeModel model(config, kVocab);
  for (RequestId id : {1, 2, 3, 4}) {
    scheduler.add(make_request(id, 5 + static_cast<int32_t>(id), 4, static_cast<int32_t>(id) * 100));
  }
  std::map<RequestId, std::vector<int32_t>> out;
  std::optional<std::pair<StepPlan, std::vector<int32_t>>> running;
  while (scheduler.has_work()) {
    std::optional<StepPlan> plan = scheduler.plan();
    std::vector<int32_t> tokens;
    if (plan) tokens = model.choose(*plan);  // feeds itself from its own samples
    if (running) {
      for (const TokenEvent& e : apply(scheduler, running->first, running->second)) {
        out[e.id].push_back(*e.token);
      }
    }
    running.reset();
    if (plan) running = {*plan, tokens};
  }
  for (RequestId id : {1, 2, 3, 4}) {
    CHECK(out[id] == fake_serial(make_request(id, 5 + static_cast<int32_t>(id), 4,
                                              static_cast<int32_t>(id) * 100),
                                 kVocab, 64, {kEnd}));
  }
}

TEST_CASE("ahead: who ends by length is not planned again, and frees pages and slot for the next plan") {
  SchedulerConfig config = small_config();
  config.max_num_seqs = 1;
  config.num_pages = 16;
  Scheduler scheduler(config);
  scheduler.add(make_request(1, 8, 2));
  const StepPlan prefill = *scheduler.plan();
  const StepPlan decode = *scheduler.plan();
  CHECK(scheduler.stats().pages_used == 0);
  CHECK(scheduler.stats().running == 1);
  CHECK(apply(scheduler, prefill, {5}).at(0).finish_reason == FinishReason::kNone);
  CHECK_FALSE(scheduler.plan());  // nothing to do until the last token is there
  CHECK(scheduler.has_work());
  CHECK(scheduler.ids() == std::vector<RequestId>{1});
  scheduler.add(make_request(2, 8, 2, 100));
  const StepPlan next = *scheduler.plan();
  REQUIRE(next.slices.size() == 1);
  CHECK(next.slices[0].request == 2);
  CHECK(apply(scheduler, decode, {6}).at(0).finish_reason == FinishReason::kLength);
  CHECK(scheduler.ids() == std::vector<RequestId>{2});
  CHECK(scheduler.cancel(2));
  CHECK(apply(scheduler, next, {7}).empty());
  CHECK_FALSE(scheduler.has_work());
}

TEST_CASE("ahead: the longest context ends a sequence as max_tokens does") {
  Scheduler scheduler(small_config());
  scheduler.add(make_request(1, 62, 100));
  std::optional<StepPlan> plan;
  for (int i = 0; i < 4; ++i) {
    plan = *scheduler.plan();
    if (i < 3) apply(scheduler, *plan, {});
  }
  REQUIRE(plan->slices.at(0).sample);
  const StepPlan last = *scheduler.plan();
  apply(scheduler, *plan, {1});
  CHECK_FALSE(scheduler.plan());
  CHECK(apply(scheduler, last, {2}).at(0).finish_reason == FinishReason::kLength);
}

TEST_CASE("ahead: an end token leaves a dead slice behind") {
  Scheduler scheduler(small_config());
  scheduler.add(make_request(1, 3, 9));
  scheduler.add(make_request(2, 3, 9, 100));
  const StepPlan first = *scheduler.plan();
  const StepPlan second = *scheduler.plan();
  CHECK(second.slices.size() == 2);
  const auto events = apply(scheduler, first, {kEnd, 7});
  REQUIRE(events.size() == 2);
  CHECK(events[0].finish_reason == FinishReason::kStop);
  CHECK_FALSE(scheduler.awaits(1, second.number));
  CHECK(scheduler.awaits(2, second.number));
  CHECK(scheduler.stats().pages_used == 1);
  const StepPlan third = *scheduler.plan();
  REQUIRE(third.slices.size() == 1);
  CHECK(third.slices[0].request == 2);
  CHECK(third.slices[0].from_sample == 1);  // the dead one still has its place among the samples
  const auto later = apply(scheduler, second, {555, 8});
  REQUIRE(later.size() == 1);
  CHECK(later[0].id == 2);
  CHECK(later[0].token == 8);
  CHECK(apply(scheduler, third, {kEnd}).at(0).finish_reason == FinishReason::kStop);
  CHECK(scheduler.stats().pages_used == 0);
}

TEST_CASE("ahead: an end token before the last one by length ends it once") {
  Scheduler scheduler(small_config());
  scheduler.add(make_request(1, 3, 2));
  const StepPlan first = *scheduler.plan();
  const StepPlan second = *scheduler.plan();
  CHECK(apply(scheduler, first, {kEnd}).at(0).finish_reason == FinishReason::kStop);
  CHECK_FALSE(scheduler.has_work());
  CHECK_FALSE(scheduler.plan());
  CHECK(apply(scheduler, second, {7}).empty());
}

TEST_CASE("ahead: a sequence preempted while its step runs keeps that step's token") {
  SchedulerConfig config = small_config();
  config.num_pages = 5;
  config.max_model_len = 20;
  config.enable_prefix_caching = false;
  Scheduler scheduler(config);
  scheduler.add(make_request(1, 8, 10));
  scheduler.add(make_request(2, 4, 10, 100));
  const StepPlan first = *scheduler.plan();  // 2 and 1 pages
  REQUIRE(first.slices.size() == 2);
  StepPlan second = *scheduler.plan();  // both grow: all 5 pages
  REQUIRE(second.slices.size() == 2);
  apply(scheduler, first, {11, 21});
  StepPlan third = *scheduler.plan();
  for (int i = 0; scheduler.stats().preemptions == 0; ++i) {
    REQUIRE(third.slices.size() == 2);
    apply(scheduler, second, {12 + i, 22 + i});
    second = std::exchange(third, *scheduler.plan());
  }
  CHECK(third.slices.size() == 1);
  REQUIRE(second.slices.size() == 2);  // is running, with the one that has just lost its pages
  CHECK(scheduler.awaits(2, second.number));
  const size_t before = scheduler.tokens(2).size();
  CHECK(apply(scheduler, second, {31, 32}).at(1).id == 2);
  CHECK(scheduler.tokens(2).size() == before + 1);
  CHECK(scheduler.tokens(2).back() == 32);
  CHECK_FALSE(scheduler.awaits(2, third.number));
  // It comes back with all its tokens known, recomputed from the start.
  apply(scheduler, third, {kEnd});
  const StepPlan again = *scheduler.plan();
  REQUIRE(again.slices.size() == 1);
  CHECK(again.slices[0].request == 2);
  CHECK(again.slices[0].first_position == 0);
  CHECK(again.slices[0].from_sample == -1);
  CHECK(again.slices[0].tokens.size() == 4);
}

TEST_CASE("ahead: cancelled while its step runs, a request gets nothing more, nor does its successor") {
  Scheduler scheduler(small_config());
  scheduler.add(make_request(1, 3, 9));
  const StepPlan first = *scheduler.plan();
  const StepPlan second = *scheduler.plan();
  CHECK(scheduler.cancel(1));
  CHECK(scheduler.stats().pages_used == 0);
  scheduler.add(make_request(1, 3, 9, 100));  // the same id again
  CHECK_FALSE(scheduler.awaits(1, first.number));
  CHECK(apply(scheduler, first, {5}).empty());
  const StepPlan third = *scheduler.plan();
  CHECK(third.slices.at(0).first_position == 0);
  CHECK_FALSE(scheduler.awaits(1, second.number));
  CHECK(apply(scheduler, second, {6}).empty());
  CHECK(apply(scheduler, third, {7}).at(0).token == 7);
  CHECK(scheduler.tokens(1).size() == 4);
}

TEST_CASE("ahead: pages of the running step are found in the prefix cache, its own step's are not") {
  SchedulerConfig config = small_config();
  config.max_num_batched_tokens = 64;
  Scheduler scheduler(config);
  scheduler.add(make_request(1, 12, 9));
  scheduler.add(make_request(2, 12, 9));
  const StepPlan first = *scheduler.plan();
  REQUIRE(first.slices.size() == 1);  // the other one waits for the pages that both share
  const StepPlan second = *scheduler.plan();
  REQUIRE(second.slices.size() == 2);
  CHECK(second.slices[1].request == 2);
  CHECK(second.slices[1].first_position == 8);  // computed by the first, which runs before
  CHECK(second.slices[1].pages[0] == first.slices[0].pages[0]);
  CHECK(apply(scheduler, first, {5}).at(0).cached_tokens == 0);
  CHECK(apply(scheduler, second, {5, 6}).at(1).cached_tokens == 8);
}

}  // namespace
}  // namespace shoal
