// The engine one step ahead of a device that is slow: what it issues when, and that tokens are those of an
// engine that waits for each step.
#include <catch2/catch.hpp>
#include <deque>
#include <random>
#include <thread>

#include "tests/runtime/engine/running_engine.h"
#include "tests/runtime/engine/thread_group.h"
#include "tests/runtime/fake_model.h"

namespace shoal {
namespace {

// Queues what it is given and runs it, in order, when somebody waits for it: as late as a device can be.
class QueueingRunner : public StepRunner {
 public:
  explicit QueueingRunner(const SchedulerConfig& config) : model_(config, kVocab) {}

  std::span<const float> run(const StepPlan&) override { throw Bug("run() of a queueing runner"); }
  bool can_run_ahead(const StepPlan& plan, int32_t most_logprobs) const override {
    return most_logprobs <= 5 && (always_ahead || plan.number % 4 != 0);
  }
  void begin(const StepPlan& plan) override {
    log.push_back(fmt::format("begin {}", plan.number));
    plans.push_back(plan);
    queue_.push_back({.plan = plan});
  }
  void sample(std::span<const SampleInput> inputs) override {
    Step& step = queue_.back();
    log.push_back(fmt::format("sample {}", step.plan.number));
    step.sampled = true;
    for (const SampleInput& in : inputs) {
      Input& copy = step.inputs.emplace_back();
      copy.wanted = in.params != nullptr;
      dead += !copy.wanted;
      if (!copy.wanted) continue;
      copy.params = *in.params;
      copy.tokens.assign(in.tokens.begin(), in.tokens.end());
      copy.prompt_len = in.prompt_len;
      copy.end_token_ids = in.end_token_ids;
    }
  }
  std::vector<SampleResult> collect() override {
    SHOAL_CHECK(!queue_.empty() && queue_.front().sampled && queue_.size() <= 2, "{} steps queued",
                queue_.size());
    const Step step = std::move(queue_.front());
    queue_.pop_front();
    log.push_back(fmt::format("collect {}", step.plan.number));
    if (step.plan.number == fails_at) throw DeviceFault("the device is lost");
    const std::span<const float> logits = model_.run(step.plan);
    std::vector<SampleInput> inputs;
    for (const Input& in : step.inputs) {
      inputs.push_back({in.wanted ? &in.params : nullptr, in.tokens, in.prompt_len, in.end_token_ids});
    }
    std::vector<SampleResult> results = sample_rows(logits, inputs);
    std::vector<int32_t> tokens;
    for (const SampleResult& r : results) tokens.push_back(r.token);
    model_.sampled(tokens);
    return results;
  }

  bool always_ahead = true;
  uint64_t fails_at = 0;
  std::vector<std::string> log;
  std::vector<StepPlan> plans;
  int64_t dead = 0;

 private:
  struct Input {
    bool wanted = false;
    SamplingParams params;
    std::vector<int32_t> tokens;
    int32_t prompt_len = 0;
    std::vector<int32_t> end_token_ids;
  };
  struct Step {
    StepPlan plan;
    bool sampled = false;
    std::vector<Input> inputs;
  };
  FakeModel model_;
  std::deque<Step> queue_;
};

size_t index_of(const std::vector<std::string>& log, const std::string& what) {
  const auto at = std::ranges::find(log, what);
  INFO(what);
  REQUIRE(at != log.end());
  return static_cast<size_t>(at - log.begin());
}

// Runs `requests`, all there before the first step, to their ends.
struct Outcome {
  std::map<RequestId, std::vector<int32_t>> tokens;
  std::map<RequestId, std::vector<TokenLogprobs>> logprobs;
  std::map<RequestId, FinishReason> ends;
  EngineStats stats;
};

template <typename OnEvent>
Outcome run_all(const EngineConfig& config, QueueingRunner& runner,
                const std::vector<Request>& requests, const OnEvent& on_event) {
  ThreadGroup threads(1);
  ThreadGroup::Member group(threads, 0);
  Outcome outcome;
  Engine* self = nullptr;
  Engine engine(config, group, runner, [&](std::vector<TokenEvent> events) {
    for (const TokenEvent& e : events) {
      SHOAL_CHECK(!outcome.ends.contains(e.id), "an event of {} after its end", e.id);
      if (e.token) outcome.tokens[e.id].push_back(*e.token);
      if (e.logprobs) outcome.logprobs[e.id].push_back(*e.logprobs);
      if (e.finish_reason != FinishReason::kNone) outcome.ends[e.id] = e.finish_reason;
      on_event(*self, e);
    }
    if (outcome.ends.size() == requests.size()) self->stop();
  });
  self = &engine;
  for (const Request& r : requests) engine.submit(r);
  engine.run();
  outcome.stats = engine.stats();
  return outcome;
}

void ignore(Engine&, const TokenEvent&) {}

TEST_CASE("the next step is queued before the running one's tokens are collected") {
  QueueingRunner runner(small_config().scheduler);
  const Outcome outcome = run_all(small_config(), runner, {make_request(1, 6)}, ignore);
  CHECK(outcome.tokens.at(1) == fake_serial(make_request(1, 6), kVocab, 200, {}));
  // 6 steps; the last one is known to be the last.
  REQUIRE(runner.plans.size() == 6);
  for (int n = 1; n < 6; ++n) {
    const size_t collected = index_of(runner.log, fmt::format("collect {}", n));
    CHECK(index_of(runner.log, fmt::format("begin {}", n + 1)) < collected);
    CHECK(collected < index_of(runner.log, fmt::format("sample {}", n + 1)));
    CHECK(runner.plans[n].slices.at(0).from_sample == 0);
    CHECK(runner.plans[n].ahead);
  }
  CHECK(runner.dead == 0);
}

TEST_CASE("an end token costs one row of the step that is already queued") {
  Request request = make_request(1, 50);
  const std::vector<int32_t> serial = fake_serial(request, kVocab, 200, {});
  request.sampling.stop_token_ids = {serial[4]};
  const size_t length =
      static_cast<size_t>(std::ranges::find(serial, serial[4]) - serial.begin()) + 1;
  QueueingRunner runner(small_config().scheduler);
  const Outcome outcome = run_all(small_config(), runner, {request}, ignore);
  CHECK(outcome.tokens.at(1).size() == length);
  CHECK(outcome.ends.at(1) == FinishReason::kStop);
  CHECK(runner.plans.size() == length + 1);
  CHECK(runner.dead == 1);
  CHECK(outcome.stats.generated_tokens == static_cast<int64_t>(length));
  CHECK(outcome.stats.scheduler.pages_used == 0);
}

TEST_CASE("where the runner cannot run ahead, or may not, each step is collected before the next") {
  EngineConfig config = small_config();
  QueueingRunner runner(config.scheduler);
  std::vector<Request> requests = {make_request(1, 6)};
  SECTION("not wanted") { config.async_scheduling = false; }
  SECTION("more logprobs than the device gives") { requests[0].sampling.num_logprobs = 6; }
  run_all(config, runner, requests, ignore);
  for (int n = 1; n < 6; ++n) {
    CHECK(index_of(runner.log, fmt::format("collect {}", n)) <
          index_of(runner.log, fmt::format("begin {}", n + 1)));
    CHECK(runner.plans[n].slices.at(0).from_sample == -1);
    CHECK_FALSE(runner.plans[n].ahead);
  }
}

// Draws, penalties, logprobs, stops: everything that a token may hang on.
std::vector<Request> random_requests(std::mt19937_64& random, int count) {
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  std::vector<Request> requests;
  for (int i = 1; i <= count; ++i) {
    Request& r = requests.emplace_back();
    r.id = static_cast<RequestId>(i);
    r.priority = pick(0, 2);
    for (int n = pick(1, 40); n > 0; --n) r.tokens.push_back(pick(0, 3));
    r.prompt_len = pick(0, 3) == 0 ? pick(1, static_cast<int>(r.tokens.size()))
                                   : static_cast<int32_t>(r.tokens.size());
    SamplingParams& p = r.sampling;
    p.seed = static_cast<uint64_t>(i);
    p.temperature = pick(0, 2) == 0 ? 0.0f : 4.0f;
    p.max_tokens = static_cast<int32_t>(r.tokens.size()) - r.prompt_len + pick(1, 30);
    p.min_tokens = pick(0, 5);
    p.ignore_eos = pick(0, 3) == 0;
    p.num_logprobs = pick(-1, 3);
    if (pick(0, 1) == 0) p.frequency_penalty = 1.5f;
    if (pick(0, 1) == 0) p.presence_penalty = -0.5f;
    if (pick(0, 1) == 0) p.repetition_penalty = 1.3f;
    if (pick(0, 3) == 0) p.stop_token_ids = {pick(0, kVocab - 1)};
    if (pick(0, 3) == 0) p.logit_bias = {{pick(0, kVocab - 1), 3.0f}};
  }
  return requests;
}

bool same(const TokenLogprobs& a, const TokenLogprobs& b) {
  return a.logprob == b.logprob && a.top == b.top;
}

TEST_CASE("random loads in small pools give the tokens of an engine that waits, with cancels anywhere") {
  int64_t dead = 0, preemptions = 0, cancelled = 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    const std::vector<Request> requests = random_requests(random, 60);
    EngineConfig config = small_config();
    config.scheduler.eos_token_ids = {3, 11};
    config.scheduler.num_pools = seed % 2 == 0 ? 2 : 1;
    config.scheduler.max_model_len = 80;
    EngineConfig waiting = config;
    waiting.async_scheduling = false;
    QueueingRunner reference(waiting.scheduler);
    const Outcome want = run_all(waiting, reference, requests, ignore);

    config.scheduler.num_pages = 21;  // one sequence at its longest and a page
    config.scheduler.enable_prefix_caching = seed % 3 != 0;
    QueueingRunner runner(config.scheduler);
    runner.always_ahead = seed % 4 < 2;
    const Outcome got = run_all(config, runner, requests, [&](Engine& engine, const TokenEvent& e) {
      // Any request, whatever it is doing, the one of this event among them.
      if (seed % 2 == 1 && random() % 40 == 0) {
        engine.cancel(random() % 3 == 0 ? e.id : 1 + random() % requests.size());
      }
    });
    for (const Request& r : requests) {
      INFO("request " << r.id);
      const FinishReason end = got.ends.at(r.id);
      const auto tokens = got.tokens.contains(r.id) ? got.tokens.at(r.id) : std::vector<int32_t>{};
      if (end == FinishReason::kAbort) {
        ++cancelled;
        REQUIRE(tokens.size() <= want.tokens.at(r.id).size());
        REQUIRE(std::equal(tokens.begin(), tokens.end(), want.tokens.at(r.id).begin()));
        continue;
      }
      REQUIRE(tokens == want.tokens.at(r.id));
      REQUIRE(end == want.ends.at(r.id));
      if (r.sampling.num_logprobs < 0) continue;
      REQUIRE(std::ranges::equal(got.logprobs.at(r.id), want.logprobs.at(r.id), same));
    }
    REQUIRE(got.stats.scheduler.pages_used == 0);
    dead += runner.dead;
    preemptions += got.stats.scheduler.preemptions;
  }
  // The loads must reach what they are for.
  CHECK(dead > 100);
  CHECK(preemptions > 50);
  CHECK(cancelled > 20);
}

// A row of a step that was queued before the cancel came is all that a cancelled request may still cost.
TEST_CASE("at most one step more runs with a request that was cancelled") {
  const bool async = GENERATE(true, false);
  EngineConfig config = small_config();
  config.async_scheduling = async;
  config.scheduler.max_num_seqs = 3;
  int64_t late_rows = 0;
  for (int token = 1; token <= 12; ++token) {
    for (RequestId victim = 1; victim <= 6; ++victim) {  // running, in its prompt, or waiting by then
      INFO("token " << token << " victim " << victim);
      std::vector<Request> requests;
      for (RequestId id = 1; id <= 6; ++id) requests.push_back(make_request(id, 30));
      for (int i = 0; i < 80; ++i) requests[1].tokens.push_back(i % kVocab);
      requests[1].prompt_len = static_cast<int32_t>(requests[1].tokens.size());
      QueueingRunner runner(config.scheduler);
      size_t begun = 0;
      int tokens = 0;
      const Outcome outcome = run_all(config, runner, requests, [&](Engine& engine, const TokenEvent& e) {
        if (e.id != 1 || !e.token || ++tokens != token) return;
        begun = runner.plans.size();
        engine.cancel(victim);
      });
      REQUIRE(outcome.ends.at(victim) == FinishReason::kAbort);
      REQUIRE(begun > 0);
      // Begun by then: the step that gave the token, and where the engine runs ahead the next.
      const auto has_victim = [&](const StepPlan& plan) {
        return std::ranges::any_of(plan.slices,
                                   [&](const SequenceSlice& s) { return s.request == victim; });
      };
      for (size_t i = begun; i < runner.plans.size(); ++i) REQUIRE_FALSE(has_victim(runner.plans[i]));
      if (runner.plans[begun - 1].ahead) late_rows += has_victim(runner.plans[begun - 1]);
      REQUIRE(outcome.stats.scheduler.pages_used == 0);
    }
  }
  CHECK((late_rows > 0) == async);
}

TEST_CASE("a fault of a queued step leaves run() when that step is collected") {
  QueueingRunner runner(small_config().scheduler);
  runner.fails_at = 3;
  CHECK_THROWS_AS(run_all(small_config(), runner, {make_request(1, 9)}, ignore), DeviceFault);
  CHECK(index_of(runner.log, "begin 4") < index_of(runner.log, "collect 3"));
  CHECK(std::ranges::find(runner.log, "sample 4") == runner.log.end());
}

TEST_CASE("stopping ends the step that is queued") {
  QueueingRunner runner(small_config().scheduler);
  const Outcome outcome =
      run_all(small_config(), runner, {make_request(1, 100)}, [](Engine& engine, const TokenEvent& e) {
        if (e.token) engine.stop();
      });
  CHECK(outcome.ends.at(1) == FinishReason::kAbort);
  CHECK(runner.plans.size() == 2);
  CHECK(runner.log.back() == "collect 2");
  CHECK(outcome.tokens.at(1).size() == 2);
}

// Between plans that come fast workers do not wait for their device; where none comes they do.
TEST_CASE("workers are one step ahead too, and wait for their device when rank 0 has no next plan") {
  struct Worker : StepRunner {
    std::span<const float> run(const StepPlan&) override { throw Bug("run() of a worker"); }
    void begin(const StepPlan& plan) override {
      log.push_back(fmt::format("begin {}", plan.number));
      plans.push_back(plan.serialize());
    }
    void wait() override { log.push_back("wait"); }
    std::vector<std::string> log;
    std::vector<std::vector<std::byte>> plans;
  };
  EngineConfig config = small_config();
  QueueingRunner runner(config.scheduler);
  std::vector<std::string> expected;
  SECTION("ahead") { expected = {"begin 1", "begin 2", "begin 3", "begin 4", "wait"}; }
  SECTION("one step at a time") {
    config.async_scheduling = false;
    expected = {"begin 1", "wait", "begin 2", "wait", "begin 3", "wait", "begin 4", "wait"};
  }
  SECTION("the last of several that cannot run ahead") {
    runner.always_ahead = false;  // step 4
    expected = {"begin 1", "begin 2", "begin 3", "wait", "begin 4", "wait"};
  }
  constexpr int kRanks = 3;
  ThreadGroup threads(kRanks);
  std::vector<Worker> workers(kRanks);
  std::vector<std::thread> running;
  for (int r = 1; r < kRanks; ++r) {
    running.emplace_back([&, r] {
      ThreadGroup::Member group(threads, r);
      run_worker(group, workers[r]);
    });
  }
  ThreadGroup::Member group(threads, 0);
  Engine* self = nullptr;
  Engine engine(config, group, runner, [&](const std::vector<TokenEvent>& events) {
    if (!events.empty() && events.back().finish_reason != FinishReason::kNone) self->stop();
  });
  self = &engine;
  engine.submit(make_request(1, 4));
  engine.run();
  for (std::thread& t : running) t.join();
  std::vector<std::vector<std::byte>> plans;
  for (const StepPlan& plan : runner.plans) plans.push_back(plan.serialize());
  for (int r = 1; r < kRanks; ++r) {
    CHECK(workers[r].log == expected);
    CHECK(workers[r].plans == plans);
  }
}

}  // namespace
}  // namespace shoal
