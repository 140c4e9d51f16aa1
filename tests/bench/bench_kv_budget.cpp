// shoal_bench_kv_budget: requests through the engine with less and less room for their KV:
// throughput, and how it was had (preemptions, pages swapped). The same requests for every budget
// and way of preempting. Run it on a quiet machine; plot_kv_budget.py draws its --json.
#include <cstdio>
#include <random>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <spdlog/spdlog.h>

#include "runtime/engine/engine.h"
#include "runtime/engine/kv_tiers.h"
#include "runtime/engine/loader.h"
#include "tests/bench/report.h"
#include "tests/bench/run_main.h"

namespace shoal::bench {
namespace {

struct Options {
  std::string model, json, swap_space = "1GiB";
  int requests = 96, prompt = 128, output = 96, threads = 2, repeats = 3;
  std::vector<int64_t> budgets;  // tokens
};

std::vector<Request> requests(const Options& o, int64_t vocab) {
  std::mt19937_64 random(1);
  std::vector<Request> requests(static_cast<size_t>(o.requests));
  for (size_t i = 0; i < requests.size(); ++i) {
    Request& r = requests[i];
    r.id = i + 1;
    // From half to one and a half times the length.
    const auto between = [&](int mean) { return mean / 2 + static_cast<int>(random() % mean); };
    for (int n = between(o.prompt); n > 0; --n) {
      r.tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
    }
    r.prompt_len = static_cast<int32_t>(r.tokens.size());
    r.sampling.max_tokens = between(o.output);
    r.sampling.temperature = 0;
    r.sampling.ignore_eos = true;
  }
  return requests;
}

struct Result {
  double tokens_per_second = 0;  // generated
  SchedulerStats stats;
};

Result run_once(const Options& o, RankRuntime& rank, int64_t budget, const std::string& mode) {
  LoadOptions load;
  load.model_dir = o.model;
  load.max_num_seqs = 64;
  load.max_num_batched_tokens = 512;
  load.max_model_len = 2 * (o.prompt + o.output);
  load.kv_cache_tokens = budget;
  const TierOptions tiers{
      .swap_space = o.swap_space, .preemption_mode = mode, .enable_prefix_caching = false};
  load.swap_bytes = swap_bytes(tiers, rank);
  const auto model = load_model(rank, load);
  EngineConfig config;
  config.vocab_size = static_cast<int32_t>(model->config.vocab_size);
  config.scheduler.tiers = attach_tiers(tiers, rank, *model, "none", nullptr);
  config.scheduler.max_num_seqs = 64;
  config.scheduler.max_num_batched_tokens = 512;
  config.scheduler.max_model_len = static_cast<int32_t>(model->max_model_len);
  config.scheduler.page_size = model->runner->page_size();
  config.scheduler.num_pages = model->runner->num_pages();
  config.scheduler.enable_prefix_caching = false;  // every prompt is another
  int ended = 0;
  int64_t tokens = 0;
  Engine* self = nullptr;
  Engine engine(config, rank.group(), *model->runner, [&](std::vector<TokenEvent> events) {
    for (const TokenEvent& event : events) {
      tokens += event.token.has_value();
      ended += event.finish_reason != FinishReason::kNone;
    }
    if (ended == o.requests) self->stop();
  });
  self = &engine;
  for (Request& request : requests(o, model->config.vocab_size)) engine.submit(std::move(request));
  const auto begin = std::chrono::steady_clock::now();
  engine.run();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  return {static_cast<double>(tokens) / seconds.count(), engine.stats().scheduler};
}

int run(int argc, char** argv) {
  CLI::App app("Throughput against the room for KV, by what becomes of preempted requests");
  Options o;
  app.add_option("--model", o.model, "checkpoint folder")->required();
  app.add_option("--requests", o.requests, "all at once")->check(CLI::PositiveNumber);
  app.add_option("--prompt", o.prompt, "mean tokens of a prompt")->check(CLI::Range(2, 4096));
  app.add_option("--output", o.output, "mean tokens of an output")->check(CLI::Range(2, 4096));
  app.add_option("--swap-space", o.swap_space, "host memory for preempted requests");
  app.add_option("--threads", o.threads, "CPU threads")->check(CLI::PositiveNumber);
  app.add_option("--repeats", o.repeats, "the median of so many")->check(CLI::PositiveNumber);
  app.add_option("--budgets", o.budgets,
                 "tokens of KV; default: from all at once to the longest request");
  app.add_option("--json", o.json, "also to this file");
  CLI11_PARSE(app, argc, argv);
  const int64_t longest = 2 * (o.prompt + o.output);
  if (o.budgets.empty()) {
    for (int64_t budget = 64 * longest / 2; budget > longest; budget = budget * 3 / 4) {
      o.budgets.push_back(budget);
    }
    o.budgets.push_back(longest);
  }
  spdlog::set_level(spdlog::level::warn);
  RankRuntime rank({.device = "cpu", .num_threads = o.threads});
  nlohmann::json rows = nlohmann::json::array();
  std::printf("%10s %12s %10s %12s %12s\n", "KV tokens", "preempted", "tokens/s", "preemptions",
              "swapped");
  for (const int64_t budget : o.budgets) {
    for (const char* mode : {"recompute", "swap", "auto"}) {
      std::vector<Result> results;
      for (int i = 0; i < o.repeats; ++i) results.push_back(run_once(o, rank, budget, mode));
      std::ranges::sort(results, {}, &Result::tokens_per_second);
      const Result& r = results[results.size() / 2];
      std::printf("%10ld %12s %10.1f %12ld %12ld\n", budget, mode, r.tokens_per_second,
                  r.stats.preemptions, r.stats.tiers.swapped_out);
      std::fflush(stdout);
      rows.push_back({{"budget", budget},
                      {"mode", mode},
                      {"tokens_per_second", r.tokens_per_second},
                      {"preemptions", r.stats.preemptions},
                      {"pages_swapped", r.stats.tiers.swapped_out}});
    }
  }
  if (!o.json.empty()) write_json(o.json, {{"rows", rows}});
  return 0;
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
  return shoal::bench::run_main("shoal_bench_kv_budget", argc, argv, shoal::bench::run);
}
