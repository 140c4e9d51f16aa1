// Requests through the engine on a device, one step ahead of it and not: the same tokens, whatever they hang
// on (draws, penalties, stops), and the same logprobs. On the CPU, which is never run ahead of, both are one.
#include <catch2/catch.hpp>
#include <cmath>
#include <map>
#include <random>

#include "runtime/engine/engine.h"
#include "runtime/engine/loader.h"
#include "tests/support/ranks.h"
#ifdef SHOAL_CUDA_EMULATED
#include "tests/emulated_cuda/control.h"
#endif

namespace shoal {
namespace {

// Passes on to the model's runner what the engine asks for, and counts.
class Counted : public StepRunner {
 public:
  explicit Counted(StepRunner& runner) : runner_(runner) {}
  std::span<const float> run(const StepPlan& plan) override { return runner_.run(plan); }
  bool can_run_ahead(const StepPlan& plan, int32_t most_logprobs) const override {
    return runner_.can_run_ahead(plan, most_logprobs);
  }
  void begin(const StepPlan& plan) override {
    ++steps;
    ahead += plan.ahead;
    begun_behind += uncollected_ > 0;
    for (const SequenceSlice& s : plan.slices) fed += s.from_sample >= 0;
    ++uncollected_;
    runner_.begin(plan);
#ifdef SHOAL_CUDA_EMULATED
    for (const std::string& what : emulated::take_trace()) {
      if (what.find("sample_kernel") != std::string::npos) --unsampled_;
    }
    queued_behind += unsampled_ > 0;
#endif
  }
  void sample(std::span<const SampleInput> inputs) override {
    size_t nobody = 0;
    for (const SampleInput& in : inputs) nobody += in.params == nullptr;
    dead += static_cast<int64_t>(nobody);
    unsampled_ += inputs.size() > nobody;
    runner_.sample(inputs);
  }
  std::vector<SampleResult> collect() override {
    --uncollected_;
    return runner_.collect();
  }

  int64_t steps = 0, ahead = 0, begun_behind = 0, fed = 0, dead = 0;
  int64_t queued_behind = 0;  // steps that were queued whole before the one before had sampled

 private:
  StepRunner& runner_;
  int64_t uncollected_ = 0, unsampled_ = 0;
};

std::vector<Request> random_requests(int32_t vocab, int count) {
  std::mt19937_64 random(7);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  std::vector<Request> requests;
  for (int i = 1; i <= count; ++i) {
    Request& r = requests.emplace_back();
    r.id = static_cast<RequestId>(i);
    for (int n = pick(1, 20); n > 0; --n) r.tokens.push_back(pick(0, vocab - 1));
    r.prompt_len = static_cast<int32_t>(r.tokens.size());
    SamplingParams& p = r.sampling;
    p.seed = static_cast<uint64_t>(i);
    p.temperature = i % 3 == 0 ? 0.0f : 1.0f;
    p.max_tokens = pick(4, 16);
    p.num_logprobs = i % 3 - 1;
    p.frequency_penalty = i % 2 == 0 ? 1.0f : 0.0f;
    p.repetition_penalty = i % 4 == 0 ? 1.2f : 1.0f;
    if (i % 5 == 0) p.top_k = 20;
    // Every tenth token or so ends it: some end where the host does not expect it.
    for (int id = pick(0, 9); id < vocab; id += 10) p.stop_token_ids.push_back(id);
    p.min_tokens = pick(0, 3);
  }
  return requests;
}

struct Outcome {
  std::map<RequestId, std::vector<TokenEvent>> events;
  int64_t preemptions = 0;
  Counted counted;
};

// On ranks but 0: nothing.
void serve(LoadedModel& model, const LoadOptions& options, bool ahead, ExchangePolicy exchange,
           const std::vector<Request>& requests, Outcome& outcome) {
  RankRuntime& rank = rank_runtime();
  if (rank.rank() != 0) return run_worker(rank.group(), *model.runner);
  EngineConfig config;
  config.vocab_size = static_cast<int32_t>(model.config.vocab_size);
  config.exchange = exchange;
  config.all_to_all_min_tokens = 20;
  config.async_scheduling = ahead;
  config.scheduler.max_num_seqs = static_cast<int32_t>(options.max_num_seqs);
  config.scheduler.max_num_batched_tokens = static_cast<int32_t>(options.max_num_batched_tokens);
  config.scheduler.max_model_len = static_cast<int32_t>(model.max_model_len);
  config.scheduler.page_size = model.runner->page_size();
  config.scheduler.num_pages = model.runner->num_pages();
  config.scheduler.num_pools = options.dp_attention ? rank.size() : 1;
  size_t ended = 0;
  Engine* self = nullptr;
  Engine engine(config, rank.group(), outcome.counted, [&](std::vector<TokenEvent> events) {
    for (TokenEvent& event : events) {
      if (event.finish_reason != FinishReason::kNone && ++ended == requests.size()) self->stop();
      outcome.events[event.id].push_back(std::move(event));
    }
  });
  self = &engine;
  for (const Request& request : requests) engine.submit(request);
  engine.run();
  outcome.preemptions = engine.stats().scheduler.preemptions;
}

void check_same(const Outcome& a, const Outcome& b, const std::vector<Request>& requests) {
  for (const Request& r : requests) {
    INFO("request " << r.id);
    const auto &x = a.events.at(r.id), &y = b.events.at(r.id);
    CHECK(x.size() == y.size());
    if (x.size() != y.size()) continue;
    for (size_t i = 0; i < x.size(); ++i) {
      CHECK(x[i].token == y[i].token);
      CHECK(x[i].finish_reason == y[i].finish_reason);
      CHECK(x[i].logprobs.has_value() == (r.sampling.num_logprobs >= 0));
      if (!x[i].logprobs || !y[i].logprobs) continue;
      // Kernels for few and for many rows round differently.
      CHECK(std::fabs(x[i].logprobs->logprob - y[i].logprobs->logprob) < 1e-3);
    }
  }
}

LoadOptions small_options(const std::string& checkpoint) {
  LoadOptions options;
  options.model_dir = SHOAL_SOURCE_DIR "/tests/golden/data/" + checkpoint;
  options.dtype = "float32";
  options.max_num_seqs = 6;
  options.max_num_batched_tokens = 24;
  options.page_size = 4;
  options.max_model_len = 40;
  options.kv_cache_tokens = 44;  // of one sequence at its longest: the others are preempted
  return options;
}

TEST_CASE("one step ahead of the device: the same tokens and logprobs") {
  struct Way {
    std::string label, checkpoint;
    bool graphs = true, dp_attention = false;
    ExchangePolicy exchange = ExchangePolicy::kReplicated;
  };
  for (const Way& way : {Way{"dense, graphs", "qwen2"}, Way{"dense, eager", "qwen2", false},
                         Way{"mixture, graphs", "v3"}, Way{"DP attention", "v2-lite", true, true},
                         Way{"some steps all-to-all", "v3", true, false, ExchangePolicy::kAuto}}) {
    INFO(way.label << ", " << rank_runtime().size() << " ranks");
    LoadOptions options = small_options(way.checkpoint);
    options.dp_attention = way.dp_attention;
    options.enforce_eager = !way.graphs;
    const auto model = load_model(rank_runtime(), options);
    const std::vector<Request> requests =
        random_requests(static_cast<int32_t>(model->config.vocab_size), 10);
    Outcome waiting{.counted = Counted(*model->runner)}, ahead{.counted = Counted(*model->runner)};
    serve(*model, options, false, way.exchange, requests, waiting);
    serve(*model, options, true, way.exchange, requests, ahead);
    if (rank_runtime().rank() != 0) continue;
    check_same(ahead, waiting, requests);
    const Counted& counted = ahead.counted;
    CHECK(waiting.counted.begun_behind == 0);
    CHECK(waiting.counted.fed == 0);
    CHECK((way.dp_attention || ahead.preemptions > 0));
    if (rank_runtime().on_cpu()) {
      CHECK(counted.ahead == 0);
      CHECK(counted.begun_behind == 0);
    } else {
      // Every step that can be is queued behind one whose tokens are not collected.
      const bool always = way.exchange == ExchangePolicy::kReplicated;
      CHECK(counted.ahead > (always ? counted.steps - 1 : 0));
      CHECK(counted.begun_behind >= (always ? counted.steps - 2 : 1));
      CHECK((always || counted.ahead < counted.steps));
      CHECK(counted.fed > 0);
      CHECK(counted.dead > 0);
    }
  }
}

#ifdef SHOAL_CUDA_EMULATED

// What the host may overwrite too early, or not wait for, shows when all work of the device is late.
TEST_CASE("one step ahead of devices that are late: the next step is queued before they have sampled") {
  if (rank_runtime().on_cpu()) return;
  for (const bool graphs : {true, false}) {
    LoadOptions options = small_options("qwen2");
    options.enforce_eager = !graphs;
    const auto model = load_model(rank_runtime(), options);
    const std::vector<Request> requests =
        random_requests(static_cast<int32_t>(model->config.vocab_size), 4);
    Outcome waiting{.counted = Counted(*model->runner)}, ahead{.counted = Counted(*model->runner)};
    const auto begin = [] {
      rank_runtime().device().synchronize();
      emulated::take_trace();
      emulated::set_stream_delays(7 + rank_runtime().rank(), 300);
    };
    begin();
    serve(*model, options, false, ExchangePolicy::kReplicated, requests, waiting);
    begin();
    serve(*model, options, true, ExchangePolicy::kReplicated, requests, ahead);
    rank_runtime().device().synchronize();
    emulated::reset();
    if (rank_runtime().rank() != 0) continue;
    INFO("graphs " << graphs << ", " << rank_runtime().size() << " ranks");
    check_same(ahead, waiting, requests);
    CHECK(waiting.counted.queued_behind == 0);
    CHECK(ahead.counted.queued_behind > 0);
  }
}

TEST_CASE("a kernel that fails is reported with the step, or the two that were queued") {
  if (rank_runtime().on_cpu() || rank_runtime().size() > 1) return;
  const LoadOptions options = small_options("qwen2");
  const auto model = load_model(rank_runtime(), options);
  Outcome outcome{.counted = Counted(*model->runner)};
  emulated::fail_kernel_after(200);
  try {
    serve(*model, options, true, ExchangePolicy::kReplicated,
          random_requests(static_cast<int32_t>(model->config.vocab_size), 4), outcome);
    CHECK(false);
  } catch (const DeviceFault& fault) {
    const std::string text = fault.what();
    INFO(text);
    const auto steps = static_cast<uint64_t>(outcome.counted.steps);
    CHECK(steps > 1);
    CHECK((text.starts_with(fmt::format("in step {}: ", steps)) ||
           text.starts_with(fmt::format("in step {} or {}: ", steps - 1, steps))));
  }
  emulated::reset();
}

#endif

}  // namespace
}  // namespace shoal
