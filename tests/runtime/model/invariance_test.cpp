// A request's tokens do not depend on its neighbours in the batch, in bits: requests that run together,
// in chunks of whatever size the token budget leaves, preempted and recomputed, give exactly the
// logprobs that they give alone. Through the real engine and golden checkpoints, on 1 and more ranks.
#include <catch2/catch.hpp>
#include <map>

#include "runtime/engine/engine.h"
#include "runtime/engine/loader.h"
#include "tests/support/ranks.h"

namespace shoal {
namespace {

std::unique_ptr<LoadedModel> load(const std::string& name, bool dp_attention, int64_t kv_tokens) {
  LoadOptions options;
  options.model_dir = std::string(SHOAL_SOURCE_DIR) + "/tests/golden/data/" + name;
  options.dp_attention = dp_attention;
  options.page_size = 4;
  options.max_model_len = 128;
  options.kv_cache_tokens = kv_tokens;
  return load_model(rank_runtime(), options);
}

// Prompts of 5 to 80 tokens, greedy and sampled.
std::vector<Request> make_requests(int64_t vocab) {
  std::vector<Request> requests;
  for (uint64_t id = 1; id <= 12; ++id) {
    Request request;
    request.id = id;
    const int length = 5 + static_cast<int>(id * 37 % 76);
    for (int i = 0; i < length; ++i) {
      request.tokens.push_back(static_cast<int32_t>((id * 101 + static_cast<uint64_t>(i) * (7 + id)) %
                                                    static_cast<uint64_t>(vocab)));
    }
    request.prompt_len = length;
    request.sampling.temperature = id % 2 == 0 ? 0.0f : 0.8f;
    request.sampling.seed = id;
    request.sampling.max_tokens = 10 + static_cast<int32_t>(id % 5) * 6;
    request.sampling.ignore_eos = true;
    request.sampling.num_logprobs = 2;
    requests.push_back(request);
  }
  return requests;
}

struct Output {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // of the chosen tokens and of the two best
  bool operator==(const Output&) const = default;
};

struct Run {
  std::map<RequestId, Output> outputs;
  SchedulerStats stats;
};

// Rank 0 gives the engine `requests` at once and runs it until all have ended; the others follow.
Run run_together(LoadedModel& model, const std::vector<Request>& requests, int32_t token_budget) {
  Run run;
  if (rank_runtime().rank() != 0) {
    run_worker(rank_runtime().group(), *model.runner);
    return run;
  }
  EngineConfig config;
  config.scheduler.max_num_seqs = 8;
  config.scheduler.max_num_batched_tokens = token_budget;
  config.scheduler.max_model_len = static_cast<int32_t>(model.max_model_len);
  config.scheduler.page_size = model.runner->page_size();
  config.scheduler.num_pages = model.num_pages;
  config.scheduler.num_pools = model.layout.dp_attention ? rank_runtime().size() : 1;
  config.scheduler.enable_prefix_caching = false;  // what a request finds there is another's work
  config.all_to_all_min_tokens = 16;               // both exchanges come up
  config.vocab_size = static_cast<int32_t>(model.config.vocab_size);
  size_t ended = 0;
  Engine* engine_of_sink = nullptr;
  Engine engine(config, rank_runtime().group(), *model.runner, [&](std::vector<TokenEvent> events) {
    for (const TokenEvent& e : events) {
      Output& output = run.outputs[e.id];
      if (e.token) output.tokens.push_back(*e.token);
      if (e.logprobs) {
        output.logprobs.push_back(e.logprobs->logprob);
        for (const auto& [id, logprob] : e.logprobs->top) output.logprobs.push_back(logprob);
      }
      if (e.finish_reason != FinishReason::kNone) ++ended;
    }
    if (ended == requests.size()) engine_of_sink->stop();
  });
  engine_of_sink = &engine;
  for (const Request& request : requests) engine.submit(request);
  engine.run();
  run.stats = engine.stats().scheduler;
  return run;
}

void check_invariance(const std::string& name, bool dp_attention) {
  INFO(name << ", dp attention " << dp_attention << ", " << rank_runtime().size() << " ranks");
  const auto roomy = load(name, dp_attention, 1024);
  const auto tight = load(name, dp_attention, 128);  // of 500 that the prompts alone want
  const std::vector<Request> requests = make_requests(roomy->config.vocab_size);
  std::map<RequestId, Output> alone;
  for (const Request& request : requests) {
    const Run run = run_together(*roomy, {request}, 512);
    if (rank_runtime().rank() == 0) alone[request.id] = run.outputs.at(request.id);
  }
  const Run together = run_together(*roomy, requests, 512);
  const Run chunked = run_together(*roomy, requests, 13);
  const Run preempted = run_together(*tight, requests, 32);
  if (rank_runtime().rank() != 0) return;
  CHECK(alone.size() == requests.size());
  for (const Request& request : requests) {
    CHECK(alone[request.id].tokens.size() == static_cast<size_t>(request.sampling.max_tokens));
  }
  CHECK(together.outputs == alone);
  CHECK(chunked.outputs == alone);
  CHECK(preempted.outputs == alone);
  CHECK(preempted.stats.preemptions > 0);
  CHECK(preempted.stats.pages_used == 0);
}

TEST_CASE("tokens and logprobs do not depend on the batch: DeepSeek-V3 in FP8") {
  check_invariance("v3-fp8", false);
  check_invariance("v3-fp8", true);
}

TEST_CASE("tokens and logprobs do not depend on the batch: Llama") {
  check_invariance("llama3", false);
  check_invariance("llama3", true);
}

}  // namespace
}  // namespace shoal
