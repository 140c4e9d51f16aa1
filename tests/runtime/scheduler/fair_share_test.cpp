// Clients of one priority take turns by tokens served.
#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <random>
#include <set>

#include "runtime/scheduler/scheduler.h"
#include "tests/runtime/scheduler/make_request.h"

namespace shoal {
namespace {

SchedulerConfig config_of(int32_t max_num_seqs) {
  SchedulerConfig config;
  config.max_num_seqs = max_num_seqs;
  config.max_num_batched_tokens = 16;
  config.max_model_len = 64;
  config.page_size = 4;
  config.num_pages = 256;
  config.enable_prefix_caching = false;
  return config;
}

// Runs plans and keeps what the tests ask about.
class Shares {
 public:
  explicit Shares(const SchedulerConfig& config) : scheduler(config) {}

  RequestId add(uint64_t client, int32_t prompt_len, int32_t max_tokens, int32_t priority = 0) {
    Request request = make_request(++last_id_, prompt_len, max_tokens);
    request.client = client;
    request.priority = priority;
    clients_[request.id] = client;
    ++open[client];
    scheduler.add(std::move(request));
    return last_id_;
  }

  // False when there is nothing to do.
  bool step() {
    const std::optional<StepPlan> plan = scheduler.plan();
    if (!plan) return false;
    plans.push_back(plan->serialize());
    std::vector<Scheduler::Sampled> sampled;
    for (const SequenceSlice& s : plan->slices) {
      if (!reached_.contains(s.request)) admitted.push_back(s.request);
      int32_t& reached = reached_[s.request];
      const auto end = s.first_position + static_cast<int32_t>(s.tokens.size());
      if (s.first_position < reached) restarted.insert(s.request);
      served[clients_.at(s.request)] += std::max(0, end - reached);
      reached = std::max(reached, end);
      if (s.sample) sampled.push_back({7, std::nullopt});
    }
    for (const TokenEvent& e : scheduler.apply(*plan, sampled)) {
      if (e.finish_reason == FinishReason::kNone) continue;
      ended.push_back(e.id);
      --open[clients_.at(e.id)];
    }
    return true;
  }

  Scheduler scheduler;
  std::vector<RequestId> admitted, ended;  // in order
  std::set<RequestId> restarted;           // ran some position twice: were preempted
  std::map<uint64_t, int64_t> served;      // tokens run, by client
  std::map<uint64_t, int> open;            // requests not ended, by client
  std::vector<std::vector<std::byte>> plans;

 private:
  RequestId last_id_ = 0;
  std::map<RequestId, uint64_t> clients_;
  std::map<RequestId, int32_t> reached_;
};

TEST_CASE("a light client's request comes next, however many a heavy one has waiting") {
  Shares shares(config_of(4));
  for (int i = 0; i < 1000; ++i) shares.add(1, 8, 6);
  for (int i = 0; i < 20; ++i) REQUIRE(shares.step());
  const size_t before = shares.admitted.size();
  REQUIRE(before < 100);
  const RequestId light = shares.add(2, 8, 6);
  while (shares.admitted.size() == before) REQUIRE(shares.step());
  CHECK(shares.admitted[before] == light);
  // And the heavy one gets everything that the light one does not ask for.
  while (shares.step()) {
  }
  CHECK(shares.ended.size() == 1001);
  CHECK(std::is_sorted(shares.admitted.begin() + before + 1, shares.admitted.end()));
}

TEST_CASE("priority goes before fair shares") {
  Shares shares(config_of(1));
  const RequestId first = shares.add(1, 30, 3);
  shares.step();
  const RequestId late = shares.add(2, 8, 3, 1), urgent = shares.add(1, 8, 3, 0);
  while (shares.step()) {
  }
  CHECK(shares.ended == std::vector<RequestId>{first, urgent, late});
}

// Long and short prompts, long and short answers, few and many requests waiting: served tokens stay
// together.
TEST_CASE("clients that always wait are served alike, whatever their requests are") {
  const uint64_t seed = GENERATE(1, 2, 3);
  std::mt19937_64 random(seed);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  constexpr int32_t kSeqs = 6;
  Shares shares(config_of(kSeqs));
  struct Kind {
    int prompt, output, backlog;
  };
  const std::map<uint64_t, Kind> kinds = {{1, {40, 20, 100}}, {2, {3, 2, 40}}, {9, {10, 30, 12}}};
  const auto refill = [&] {
    for (const auto& [client, kind] : kinds) {
      while (shares.open[client] < kind.backlog) {
        shares.add(client, pick(1, kind.prompt), pick(1, kind.output));
      }
    }
  };
  // What all slots can hold of one client's longest requests.
  constexpr int64_t kBound = kSeqs * 64;
  for (int i = 0; i < 5000; ++i) {
    refill();
    REQUIRE(shares.step());
    const auto [least, most] = std::minmax({shares.served[1], shares.served[2], shares.served[9]});
    REQUIRE(most - least <= kBound);
  }
  CHECK(shares.served[1] > 10 * kBound);  // so the bound says something
}

TEST_CASE("nobody saves up turns by being idle") {
  Shares shares(config_of(4));
  const bool known = GENERATE(false, true);
  if (known) shares.add(2, 4, 1);  // served a little, long ago
  for (int i = 0; i < 300; ++i) shares.add(1, 10, 10);
  for (int i = 0; i < 500; ++i) REQUIRE(shares.step());
  REQUIRE(shares.open[1] > 100);
  REQUIRE(shares.served[1] > 2000);
  const int64_t mine = shares.served[1], its = shares.served[2];
  for (int i = 0; i < 100; ++i) shares.add(2, 10, 10);
  while (shares.open[1] > 4 && shares.open[2] > 4) {
    REQUIRE(shares.step());
    REQUIRE(std::abs((shares.served[1] - mine) - (shares.served[2] - its)) <= 4 * 64);
  }
  while (shares.step()) {
  }
  CHECK(shares.ended.size() == size_t{400} + known);
}

TEST_CASE("a sequence that runs is not preempted for one that was admitted after it") {
  SchedulerConfig config = config_of(2);
  config.num_pages = 16;  // one at its longest
  Shares shares(config);
  shares.add(1, 8, 2);
  for (int i = 0; i < 10; ++i) shares.add(1, 8, 50);
  REQUIRE(shares.step());
  const RequestId light = shares.add(2, 8, 50);
  while (shares.step()) {
  }
  REQUIRE(shares.scheduler.stats().preemptions > 0);
  // Of all but one it ran before; of those that came before it and were admitted later none took its
  // pages.
  CHECK(shares.admitted[2] == light);
  const auto place = std::ranges::find(shares.ended, light) - shares.ended.begin();
  CHECK(place <= 2);
  CHECK(shares.ended.size() == 12);
}

TEST_CASE("one that waits for pages does not hold up a client that has been served less") {
  SchedulerConfig config = config_of(4);
  config.num_pages = 16;
  config.max_num_batched_tokens = 64;
  Shares shares(config);
  shares.add(1, 40, 20);  // 10 pages, 15 in the end
  shares.add(1, 60, 4);   // blocked: 15 pages
  REQUIRE(shares.step());
  REQUIRE(shares.admitted.size() == 1);
  const RequestId small = shares.add(2, 4, 2);
  REQUIRE(shares.step());
  CHECK(shares.admitted.back() == small);
  // One of the same client would wait behind it.
  const RequestId own = shares.add(1, 4, 2);
  REQUIRE(shares.step());
  CHECK(shares.admitted.back() != own);
  while (shares.step()) {
  }
  CHECK(shares.ended.size() == 4);
}

TEST_CASE("with one client the order is that of arrival, whoever it is") {
  SchedulerConfig config = config_of(4);
  config.num_pages = 24;
  config.enable_prefix_caching = true;
  std::vector<std::vector<std::vector<std::byte>>> plans;
  for (const uint64_t client : {uint64_t{0}, uint64_t{7}, ~uint64_t{0}}) {
    std::mt19937_64 random(5);
    const auto pick = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    Shares shares(config);
    for (int i = 0; i < 200; ++i) shares.add(client, pick(1, 30), pick(1, 30));
    while (shares.step()) {
    }
    CHECK(std::ranges::is_sorted(shares.admitted));
    CHECK(shares.scheduler.stats().preemptions > 0);
    plans.push_back(shares.plans);
  }
  CHECK(plans[0] == plans[1]);
  CHECK(plans[0] == plans[2]);
}

}  // namespace
}  // namespace shoal
