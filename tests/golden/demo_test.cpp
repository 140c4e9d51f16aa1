// The demo model end to end on the device: real questions through tokenizer, template, scheduler, batched
// steps, sampling and detokenizer, many at a time. e2e_quality_test asks all 400 of a server on the CPU;
// these are a few, for what runs on (emulated) GPUs. Under mpirun the ranks share the model.
#include <catch2/catch.hpp>

#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/engine/engine.h"
#include "runtime/engine/loader.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "tests/support/ranks.h"

namespace shoal {
namespace {

const std::string kModel = SHOAL_SOURCE_DIR "/deploy/demo-model";

// Single questions with a short answer in words or a number.
std::vector<nlohmann::json> short_questions(size_t count) {
  std::vector<nlohmann::json> questions;
  std::ifstream file(SHOAL_SOURCE_DIR "/tests/demo_model/questions.jsonl");
  for (std::string line; std::getline(file, line) && questions.size() < count;) {
    auto question = nlohmann::json::parse(line);
    if (question["messages"].size() == 1 && question["check"] != "exact") {
      questions.push_back(std::move(question));
    }
  }
  return questions;
}

// Asks `questions` at once; how many answers hold what is expected. On ranks but 0: nothing.
size_t right_answers(const std::vector<nlohmann::json>& questions, const LoadOptions& options,
                     ExchangePolicy exchange, float temperature) {
  RankRuntime& rank = rank_runtime();
  const auto model = load_model(rank, options);
  const auto free_bytes = rank.device().memory_info().first;
  if (rank.rank() != 0) {
    run_worker(rank.group(), *model->runner);
    return 0;
  }
  const Tokenizer tokenizer = Tokenizer::FromCheckpoint(kModel);
  const ChatTemplate chat = ChatTemplate::FromCheckpoint(kModel);
  EngineConfig config;
  config.vocab_size = static_cast<int32_t>(model->config.vocab_size);
  config.exchange = exchange;
  config.scheduler.max_num_seqs = 16;
  config.scheduler.max_num_batched_tokens = static_cast<int32_t>(options.max_num_batched_tokens);
  config.scheduler.max_model_len = static_cast<int32_t>(model->max_model_len);
  config.scheduler.page_size = model->runner->page_size();
  config.scheduler.num_pages = model->runner->num_pages();
  config.scheduler.num_pools = options.dp_attention ? rank.size() : 1;
  config.scheduler.eos_token_ids = model->config.eos_token_ids;
  std::map<RequestId, std::vector<int32_t>> outputs;
  size_t ended = 0;
  Engine* self = nullptr;
  Engine engine(config, rank.group(), *model->runner, [&](std::vector<TokenEvent> events) {
    for (const TokenEvent& event : events) {
      if (event.token) outputs[event.id].push_back(*event.token);
      if (event.finish_reason != FinishReason::kNone && ++ended == questions.size()) self->stop();
    }
  });
  self = &engine;
  std::vector<Request> requests;
  for (size_t i = 0; i < questions.size(); ++i) {
    Request request;
    request.id = i + 1;
    request.tokens = tokenizer.encode(chat.render(questions[i]["messages"], nullptr, true),
                                      {.add_special_tokens = false});
    request.prompt_len = static_cast<int32_t>(request.tokens.size());
    request.sampling.temperature = temperature;
    request.sampling.top_p = 0.9f;
    request.sampling.seed = i;
    request.sampling.max_tokens = 110;
    requests.push_back(std::move(request));
  }
  for (Request& request : requests) engine.submit(std::move(request));
  engine.run();
  // All steps ran in what was allocated while the model was loaded. (All-to-all may need more: how many
  // tokens a rank gets is the router's choice.)
  if (!rank.on_cpu() && exchange == ExchangePolicy::kReplicated) {
    CHECK(rank.device().memory_info().first == free_bytes);
  }
  size_t right = 0;
  for (size_t i = 0; i < questions.size(); ++i) {
    const std::string text = tokenizer.decode(outputs[i + 1], /*skip_special_tokens=*/true);
    const auto expected = questions[i]["expected"].get<std::string>();
    INFO(questions[i]["messages"][0]["content"] << " -> " << text);
    CHECK(!text.empty());
    right += text.find(expected) != std::string::npos;
  }
  return right;
}

TEST_CASE("the demo model answers on the device") {
  const auto questions = short_questions(20);
  CHECK(questions.size() == 20);
  LoadOptions options;
  options.model_dir = kModel;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 96;  // prompts come in pieces, beside decoding sequences
  options.max_model_len = 192;
  options.kv_cache_tokens = 192 * 16;
  struct Way {
    std::string label;
    ExchangePolicy exchange;
    bool dp_attention;
    bool eager;
    float temperature;
    std::string kv_cache_dtype = "auto";
  };
  for (const Way& way : {Way{"replicated, graphs", ExchangePolicy::kReplicated, false, false, 0, "fp8"},
                         Way{"all-to-all, eager", ExchangePolicy::kAllToAll, false, true, 0},
                         Way{"dp attention, sampled", ExchangePolicy::kAuto, true, false, 0.5f, "int8"}}) {
    options.kv_cache_dtype = way.kv_cache_dtype;
    options.dp_attention = way.dp_attention;
    options.enforce_eager = way.eager;
    INFO(way.label);
    const size_t right = right_answers(questions, options, way.exchange, way.temperature);
    // 98 % of all questions are answered right (e2e_quality_test); of twenty, two may be wrong.
    if (rank_runtime().rank() == 0) CHECK(right >= 18);
  }
}

// Prints how many of all short questions are answered right (docs/kernels.md, "KV cache formats").
TEST_CASE("table of answers by KV cache format", "[.table]") {
  const auto questions = short_questions(1000);
  LoadOptions options;
  options.model_dir = kModel;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 96;
  options.max_model_len = 192;
  options.kv_cache_tokens = 192 * 16;
  for (const char* dtype : {"float32", "bfloat16", "fp8", "int8"}) {
    options.kv_cache_dtype = dtype;
    const size_t right = right_answers(questions, options, ExchangePolicy::kReplicated, 0);
    if (rank_runtime().rank() == 0) std::printf("%-9s %zu of %zu\n", dtype, right, questions.size());
  }
}

}  // namespace
}  // namespace shoal
