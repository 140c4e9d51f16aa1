#include "runtime/scheduler/scheduler.h"

#include <catch2/catch.hpp>
#include <map>

#include "kernels/base/error.h"
#include "tests/runtime/fake_model.h"
#include "tests/runtime/scheduler/make_request.h"

namespace shoal {
namespace {

constexpr int32_t kVocab = 1000;

SchedulerConfig small_config() {
  SchedulerConfig config;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 16;
  config.max_model_len = 64;
  config.page_size = 4;
  config.num_pages = 64;
  return config;
}

// One step with the token that `choose` gives each sampled slice.
template <typename Choose>
std::vector<TokenEvent> step(Scheduler& scheduler, const StepPlan& plan, Choose choose) {
  std::vector<Scheduler::Sampled> sampled;
  for (const SequenceSlice& s : plan.slices) {
    if (s.sample) sampled.push_back({choose(s), std::nullopt});
  }
  return scheduler.apply(plan, sampled);
}

std::vector<TokenEvent> step(Scheduler& scheduler, const StepPlan& plan) {
  return step(scheduler, plan, [](const SequenceSlice&) { return 500; });
}

TEST_CASE("a prompt is prefilled in chunks and its last token samples") {
  Scheduler scheduler(small_config());
  REQUIRE_FALSE(scheduler.plan());
  scheduler.add(make_request(1, 35, 2));
  std::vector<std::pair<int32_t, size_t>> slices;
  for (int i = 0; i < 3; ++i) {
    const StepPlan plan = *scheduler.plan();
    REQUIRE(plan.slices.size() == 1);
    const SequenceSlice& s = plan.slices[0];
    REQUIRE(s.tokens[0] == s.first_position);
    REQUIRE_FALSE(s.absorbed);
    REQUIRE(s.sample == (i == 2));
    slices.emplace_back(s.first_position, s.tokens.size());
    REQUIRE(step(scheduler, plan).size() == (i == 2 ? 1 : 0));
  }
  REQUIRE(slices == std::vector<std::pair<int32_t, size_t>>{{0, 16}, {16, 16}, {32, 3}});
  const StepPlan decode = *scheduler.plan();
  REQUIRE(decode.slices.at(0).absorbed);
  REQUIRE(decode.slices[0].tokens == std::vector<int32_t>{500});
  REQUIRE(step(scheduler, decode).at(0).finish_reason == FinishReason::kLength);
  REQUIRE_FALSE(scheduler.has_work());
  REQUIRE(scheduler.stats().pages_used == 0);
}

TEST_CASE("decodes go first and prefills take what is left of the budget") {
  Scheduler scheduler(small_config());
  scheduler.add(make_request(1, 3, 20));
  step(scheduler, *scheduler.plan());
  scheduler.add(make_request(2, 40, 20, 100));
  const StepPlan plan = *scheduler.plan();
  REQUIRE(plan.slices.size() == 2);
  REQUIRE(plan.slices[0].request == 1);
  REQUIRE(plan.slices[0].absorbed);
  REQUIRE(plan.slices[1].tokens.size() == 15);
  REQUIRE(plan.num_tokens() == 16);
}

TEST_CASE("priority goes before arrival") {
  SchedulerConfig config = small_config();
  config.max_num_seqs = 1;
  Scheduler scheduler(config);
  for (RequestId id : {1, 2, 3, 4}) {
    Request request = make_request(id, 3, 1, static_cast<int32_t>(id) * 100);
    request.priority = id <= 2 ? 5 : -1;
    scheduler.add(std::move(request));
  }
  std::vector<RequestId> order;
  while (scheduler.has_work()) {
    for (const TokenEvent& e : step(scheduler, *scheduler.plan())) order.push_back(e.id);
  }
  REQUIRE(order == std::vector<RequestId>{3, 4, 1, 2});
}

TEST_CASE("ends: end token, stop token, min_tokens, ignore_eos, max_tokens, context") {
  SchedulerConfig config = small_config();
  config.eos_token_ids = {900, 500};
  const auto run = [&](Request request, int32_t token) {
    Scheduler scheduler(config);
    scheduler.add(std::move(request));
    std::vector<TokenEvent> events;
    while (scheduler.has_work()) {
      for (TokenEvent& e : step(scheduler, *scheduler.plan(),
                                [&](const SequenceSlice&) { return token; })) {
        events.push_back(e);
      }
    }
    return events;
  };
  auto events = run(make_request(1, 3, 10), 500);
  REQUIRE(events.size() == 1);
  REQUIRE(events[0].finish_reason == FinishReason::kStop);
  REQUIRE(events[0].matched_stop_token == 500);

  Request request = make_request(1, 3, 10);
  request.sampling.stop_token_ids = {7, 8};
  events = run(request, 8);
  REQUIRE(events.size() == 1);
  REQUIRE(events[0].matched_stop_token == 8);

  request = make_request(1, 3, 10);
  request.sampling.min_tokens = 2;
  REQUIRE(run(request, 500).size() == 3);

  request.sampling.ignore_eos = true;
  events = run(request, 500);
  REQUIRE(events.size() == 10);
  REQUIRE(events.back().finish_reason == FinishReason::kLength);
  REQUIRE_FALSE(events.back().matched_stop_token);

  request.sampling.max_tokens = 1000;
  events = run(request, 500);
  REQUIRE(events.size() == 61);  // max_model_len 64 - 3
  REQUIRE(events.back().finish_reason == FinishReason::kLength);
}

TEST_CASE("requests that can never run are refused by name") {
  SchedulerConfig config = small_config();
  config.num_pages = 8;  // 32 tokens, less than max_model_len
  Scheduler scheduler(config);
  REQUIRE_THROWS_AS(scheduler.add(make_request(1, 0, 1)), InvalidInput);
  REQUIRE_THROWS_AS(scheduler.add(make_request(1, 32, 1)), InvalidInput);
  REQUIRE_THROWS_AS(scheduler.add(make_request(1, 5, 0)), InvalidInput);
  Request replayed = make_request(1, 5, 2);
  replayed.prompt_len = 3;
  REQUIRE_THROWS_AS(scheduler.add(replayed), InvalidInput);
  replayed.prompt_len = 6;
  REQUIRE_THROWS_AS(scheduler.add(replayed), InvalidInput);
  REQUIRE_FALSE(scheduler.has_work());
  scheduler.add(make_request(1, 31, 5));
  REQUIRE_THROWS_AS(scheduler.add(make_request(1, 3, 5)), Bug);
  step(scheduler, *scheduler.plan());
  REQUIRE(step(scheduler, *scheduler.plan()).at(0).finish_reason == FinishReason::kLength);
}

TEST_CASE("a second prompt takes full pages from the prefix cache, never its last token") {
  Scheduler scheduler(small_config());
  scheduler.add(make_request(1, 12, 1));
  step(scheduler, *scheduler.plan());
  scheduler.add(make_request(2, 12, 1));  // the same prompt: 2 of its 3 pages may be used
  StepPlan plan = *scheduler.plan();
  REQUIRE(plan.slices.at(0).first_position == 8);
  auto events = step(scheduler, plan);
  REQUIRE(events.at(0).cached_tokens == 8);
  scheduler.add(make_request(3, 13, 1));
  plan = *scheduler.plan();
  REQUIRE(plan.slices.at(0).first_position == 12);
  step(scheduler, plan);
  Request other = make_request(4, 13, 1);
  other.tokens[3] = 999;
  scheduler.add(other);
  plan = *scheduler.plan();
  REQUIRE(plan.slices.at(0).first_position == 0);
  step(scheduler, plan);
  REQUIRE(scheduler.stats().prefix_hits == 20);
  REQUIRE(scheduler.stats().prefix_queries == 12 + 12 + 13 + 13);
}

TEST_CASE("requests of one prompt that come together compute it once") {
  SchedulerConfig config = small_config();
  config.max_num_batched_tokens = 64;
  Scheduler scheduler(config);
  for (RequestId id : {1, 2, 3}) scheduler.add(make_request(id, 30, 4));
  StepPlan plan = *scheduler.plan();
  REQUIRE(plan.slices.size() == 1);
  step(scheduler, plan);
  plan = *scheduler.plan();
  REQUIRE(plan.slices.size() == 3);
  REQUIRE(plan.slices[1].first_position == 28);
  REQUIRE(plan.slices[2].first_position == 28);
}

TEST_CASE("generated tokens are not entered into the prefix cache") {
  Scheduler scheduler(small_config());
  scheduler.add(make_request(1, 6, 8));
  while (scheduler.has_work()) step(scheduler, *scheduler.plan());
  Request next = make_request(2, 6, 1);
  next.tokens.resize(14, 500);
  next.prompt_len = 14;
  scheduler.add(next);
  REQUIRE(scheduler.plan()->slices.at(0).first_position == 4);
}

TEST_CASE("a replayed request is recomputed in prompt and generated slices, and goes on counting") {
  Scheduler scheduler(small_config());
  Request request = make_request(1, 20, 12);
  request.prompt_len = 10;
  scheduler.add(request);
  StepPlan plan = *scheduler.plan();
  REQUIRE(plan.slices.at(0).tokens.size() == 10);
  REQUIRE_FALSE(plan.slices[0].absorbed);
  REQUIRE_FALSE(plan.slices[0].sample);
  step(scheduler, plan);
  plan = *scheduler.plan();
  REQUIRE(plan.slices.at(0).tokens.size() == 10);
  REQUIRE(plan.slices[0].absorbed);
  REQUIRE(plan.slices[0].sample);
  step(scheduler, plan);
  REQUIRE(step(scheduler, *scheduler.plan()).at(0).finish_reason == FinishReason::kLength);
}

TEST_CASE("without free pages the last in rank is preempted and its output does not change") {
  SchedulerConfig config = small_config();
  config.num_pages = 9;
  config.enable_prefix_caching = false;
  Scheduler scheduler(config);
  FakeModel model(config, kVocab);
  std::vector<Request> requests;
  for (RequestId id : {1, 2, 3}) {
    requests.push_back(make_request(id, 5, 20, static_cast<int32_t>(id) * 100));
    scheduler.add(requests.back());
  }
  std::map<RequestId, std::vector<int32_t>> out;
  std::vector<RequestId> ended;
  while (scheduler.has_work()) {
    const StepPlan plan = *scheduler.plan();
    std::vector<Scheduler::Sampled> sampled;
    for (int32_t token : model.choose(plan)) sampled.push_back({token, std::nullopt});
    for (const TokenEvent& e : scheduler.apply(plan, sampled)) {
      out[e.id].push_back(*e.token);
      if (e.finish_reason != FinishReason::kNone) ended.push_back(e.id);
    }
  }
  REQUIRE(scheduler.stats().preemptions > 0);
  REQUIRE(scheduler.stats().pages_used == 0);
  REQUIRE(ended == std::vector<RequestId>{1, 2, 3});
  for (const Request& r : requests) REQUIRE(out[r.id] == fake_serial(r, kVocab, 64, {}));
}

TEST_CASE("cancel frees pages at once, whatever the request is doing") {
  SchedulerConfig config = small_config();
  config.max_num_seqs = 2;
  Scheduler scheduler(config);
  for (RequestId id : {1, 2, 3}) {
    scheduler.add(make_request(id, 20, 5, static_cast<int32_t>(id) * 100));
  }
  step(scheduler, *scheduler.plan());  // 1 in prefill, 2 and 3 waiting
  REQUIRE(scheduler.cancel(3));
  REQUIRE(scheduler.cancel(1));
  REQUIRE_FALSE(scheduler.cancel(1));
  REQUIRE(scheduler.stats().pages_used == 0);
  step(scheduler, *scheduler.plan());
  REQUIRE(scheduler.cancel(2));
  REQUIRE_FALSE(scheduler.has_work());
  REQUIRE(scheduler.stats().pages_used == 0);
}

TEST_CASE("pools: a request goes where its prefix is, else where most pages are free") {
  SchedulerConfig config = small_config();
  config.num_pools = 2;
  config.max_num_batched_tokens = 64;
  Scheduler scheduler(config);
  scheduler.add(make_request(1, 12, 9));
  scheduler.add(make_request(2, 12, 9, 100));
  StepPlan plan = *scheduler.plan();
  REQUIRE(plan.slices.size() == 2);
  REQUIRE(plan.slices[0].dp_rank == 0);
  REQUIRE(plan.slices[1].dp_rank == 1);
  const RequestId second = plan.slices[1].request;
  step(scheduler, plan);
  scheduler.add(make_request(3, 16, 9, second == 2 ? 100 : 0));
  plan = *scheduler.plan();
  REQUIRE(plan.slices.back().request == 3);
  REQUIRE(plan.slices.back().dp_rank == 1);
  REQUIRE(plan.slices.back().first_position == 12);
}

}  // namespace
}  // namespace shoal
