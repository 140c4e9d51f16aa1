// Golden mixtures with their experts at home anywhere: the same logits at every budget, in every
// mode, for both exchanges, on one to three ranks; bit for bit on the CPU, as the tolerance says on
// GPUs, where the CPU multiplies what the device does not hold.
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#ifdef SHOAL_CUDA_EMULATED
#include "tests/emulated_cuda/control.h"
#endif
#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/runtime/offload/offload_case.h"

namespace shoal {
namespace {

constexpr double kTolerance = 1e-4;  // of the largest logit: tests/golden/README.md

struct Golden {
  std::string dir;
  std::vector<int32_t> prompt, greedy, first;
  double max_abs_logit = 0;
};

Golden read_golden(const std::string& name) {
  Golden golden;
  golden.dir = std::string(SHOAL_SOURCE_DIR) + "/tests/golden/data/" + name;
  const auto json = nlohmann::json::parse(std::ifstream(golden.dir + "/golden.json"));
  golden.first = json["prompts"][1].get<std::vector<int32_t>>();
  golden.prompt = json["prompts"][2].get<std::vector<int32_t>>();
  golden.greedy = json["greedy"].get<std::vector<int32_t>>();
  golden.max_abs_logit = json["max_abs_logit"].get<double>();
  return golden;
}

StepPlan step(const LoadedModel& model, std::span<const int32_t> tokens, int32_t position,
              ExpertExchange exchange, bool absorbed) {
  StepPlan plan;
  plan.exchange = exchange;
  SequenceSlice& slice = plan.slices.emplace_back();
  slice.first_position = position;
  slice.tokens.assign(tokens.begin(), tokens.end());
  for (int32_t page = 0; page < model.num_pages / 2; ++page) slice.pages.push_back(page);
  slice.absorbed = absorbed;
  slice.sample = slice.all_logits = true;
  return plan;
}

// Logits of a prompt and of some tokens after it; empty but on rank 0.
std::vector<float> run(LoadedModel& model, const Golden& golden, ExpertExchange exchange) {
  std::vector<float> all;
  const auto add = [&](std::span<const int32_t> tokens, int32_t position, bool absorbed) {
    const auto logits = model.runner->run(step(model, tokens, position, exchange, absorbed));
    all.insert(all.end(), logits.begin(), logits.end());
  };
  add(golden.prompt, 0, false);
  for (int32_t i = 0; i < 4; ++i) {
    add(std::span(golden.greedy).subspan(i, 1), static_cast<int32_t>(golden.prompt.size()) + i,
        true);
  }
  return all;
}

void check_same(const std::vector<float>& a, const std::vector<float>& b, double scale) {
  CHECK(a.size() == b.size());
  if (a.size() != b.size()) return;
  if (rank_runtime().on_cpu()) {
    CHECK(a == b);
    return;
  }
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(double{a[i]} - double{b[i]});
    if (!(difference <= largest)) largest = difference;
  }
  CHECK(largest <= kTolerance * scale);
}

// Nothing goes beyond the limit, which is what the device's own memory is for.
void check_memory(const LoadedModel& model, size_t before) {
  const MemoryLedger& ledger = rank_runtime().device().ledger();
  const RankPlan& plan = model.plan.ranks.front();
  CHECK(plan.total() <= model.plan.budget.bytes);
  CHECK(ledger.current(MemoryUse::kWeights) == plan.of(MemoryUse::kWeights) + before);
  CHECK(rank_runtime().workspace().high_water_bytes() <= plan.step.workspace);
  CHECK(ledger.late().empty());
}

TEST_CASE("the same logits wherever experts live") {
  const bool all = rank_runtime().on_cpu();  // an emulated GPU is a hundred times slower
  for (const char* name : {"v2-lite", "v2-grouped", "v3", "v3-fp8"}) {
    const Golden golden = read_golden(name);
    LoadOptions options = offload_options(golden.dir);
    std::vector<float> expected[2];
    std::optional<OffloadLimits> limits;
    {
      const auto model = load_model(rank_runtime(), options);
      CHECK(model->experts == nullptr);
      for (const auto exchange : {ExpertExchange::kReplicated, ExpertExchange::kAllToAll}) {
        expected[static_cast<int>(exchange)] = run(*model, golden, exchange);
      }
      limits.emplace(*model);
    }
    const int64_t E = limits->experts, one_layer = E / limits->layers;
    for (const char* mode : {"cpu", "stream", "auto"}) {
      if (!all && std::string(mode) == "auto") continue;
      for (const int64_t on_device : {E - 1, E / 2, one_layer, int64_t{0}}) {
        for (const int64_t on_host : {E, E / 4, int64_t{0}}) {
          if (!all && (on_device == E - 1 || on_device == one_layer || on_host == E / 4)) continue;
          options.expert_offload = mode;
          options.num_gpu_experts =
              E;  // what is small takes its memory with other weights if it fits
          options.gpu_memory_limit = limits->device(on_device);
          options.host_memory = on_host == E ? "" : limits->host(on_host);
          const size_t before = rank_runtime().device().ledger().current(MemoryUse::kWeights);
          const auto model = load_model(rank_runtime(), options);
          INFO(name << ", " << mode << ", " << on_device << " of " << E << " on the device, "
                    << on_host << " on the host, rank " << rank_runtime().rank() << " of "
                    << rank_runtime().size());
          CHECK(model->experts != nullptr);
          if (model->experts == nullptr) continue;
          const ExpertCounts counts = model->plan.ranks.front().experts;
          CHECK(counts.device == on_device);
          // Where all of them fit without what reading files takes, none is on disk.
          const bool all_fit = limits->holds(on_host, E - on_device);
          CHECK(counts.host == (all_fit ? E - on_device : on_host));
          for (const auto exchange : {ExpertExchange::kReplicated, ExpertExchange::kAllToAll}) {
            const std::vector<float> logits = run(*model, golden, exchange);
            check_same(logits, expected[static_cast<int>(exchange)], golden.max_abs_logit);
          }
          check_memory(*model, before);
          const OffloadStats& stats = model->experts->stats();
          CHECK((stats.bytes_streamed > 0) == (stats.rows_streamed > 0));
          CHECK((stats.bytes_read_by_cpu > 0) == (stats.rows_on_host > 0));
          if (std::string(mode) == "stream") CHECK(stats.rows_on_host == 0);
          if (std::string(mode) == "cpu") CHECK(stats.rows_streamed == 0);
          if (on_device == 0) CHECK(stats.rows_on_host + stats.rows_streamed > 0);
          if (on_device == 0 && on_host == 0) CHECK(stats.bytes_from_disk > 0);
          if (all_fit) CHECK(stats.bytes_from_disk == 0);
        }
      }
    }
  }
}

TEST_CASE("requests over ranks, with experts off the device") {
  const Golden golden = read_golden("v3");
  LoadOptions options = offload_options(golden.dir);
  options.dp_attention = true;
  auto model = load_model(rank_runtime(), options);
  const auto expected = run(*model, golden, ExpertExchange::kAllToAll);
  const OffloadLimits limits(*model);
  options.expert_offload = "auto";
  options.num_gpu_experts = 1 << 10;
  options.gpu_memory_limit = limits.device(limits.experts / 3);
  options.host_memory = limits.host(limits.experts / 3);
  model.reset();
  model = load_model(rank_runtime(), options);
  check_same(run(*model, golden, ExpertExchange::kAllToAll), expected, golden.max_abs_logit);
  check_same(run(*model, golden, ExpertExchange::kReplicated), expected, golden.max_abs_logit);
  // In two halves, the second's rows on their way while the first's experts are streamed.
  model.reset();
  LoadOptions halves = offload_options(golden.dir);
  halves.dp_attention = true;
  halves.overlap_min_tokens = 2;
  const OffloadLimits of_halves(*load_model(rank_runtime(), halves));
  halves.expert_offload = "stream";
  halves.num_gpu_experts = of_halves.experts;
  halves.gpu_memory_limit = of_halves.device(of_halves.experts / 3);
  model = load_model(rank_runtime(), halves);
  check_same(run(*model, golden, ExpertExchange::kAllToAll), expected, golden.max_abs_logit);
}

// The tokens are fed whatever was chosen, so that ranks stay together after a mistake.
void check_greedy(LoadedModel& model, const Golden& golden) {
  auto position = static_cast<int32_t>(golden.first.size());
  std::span<const float> logits =
      model.runner->run(step(model, golden.first, 0, ExpertExchange::kReplicated, false));
  for (const int32_t token : golden.greedy) {
    if (rank_runtime().rank() == 0) {
      const auto last = logits.last(static_cast<size_t>(model.config.vocab_size));
      CHECK(std::max_element(last.begin(), last.end()) - last.begin() == token);
    }
    if (position + 1 >= model.max_model_len) break;
    logits = model.runner->run(
        step(model, std::span(&token, 1), position++, ExpertExchange::kReplicated, true));
  }
}

// Sixty tokens, in which what is hot on the host or on disk changes places with what is cold.
TEST_CASE("homes move during generation, and the tokens stay") {
  for (const char* name : {"v2-lite", "v3"}) {
    const Golden golden = read_golden(name);
    for (const char* mode : {"cpu", "stream"}) {
      for (const bool disk : {false, true}) {
        LoadOptions options = offload_options(golden.dir);
        std::optional<OffloadLimits> limits;
        limits.emplace(*load_model(rank_runtime(), options));
        options.expert_offload = mode;
        options.num_gpu_experts = limits->experts;
        options.gpu_memory_limit = limits->device(limits->experts / 3);
        if (disk) options.host_memory = limits->host(limits->experts / 3);
        const auto model = load_model(rank_runtime(), options);
        INFO(name << ", " << mode << ", disk " << disk << ", rank " << rank_runtime().rank()
                  << " of " << rank_runtime().size());
        check_greedy(*model, golden);
        const OffloadStats stats = model->runner->offload_stats();
        const ExpertCounts& counts = model->plan.ranks.front().experts;
        CHECK((counts.disk > 0) == disk);
        CHECK(stats.moves > 0);
        CHECK(stats.bytes_moved >= stats.moves * limits->expert);
        CHECK(stats.experts_on_device == counts.device);
        CHECK(stats.experts_on_host == counts.host);
        CHECK(stats.experts_on_disk == counts.disk);
      }
    }
  }
}

#ifdef SHOAL_CUDA_EMULATED

// What is overwritten too early, or not waited for, shows when all work of the device is late.
TEST_CASE("experts come and go on a device that is late") {
  if (rank_runtime().on_cpu() || rank_runtime().size() > 2) return;
  const Golden golden = read_golden("v3");
  for (const char* mode : {"cpu", "stream"}) {
    LoadOptions options = offload_options(golden.dir);
    std::optional<OffloadLimits> limits;
    limits.emplace(*load_model(rank_runtime(), options));
    options.expert_offload = mode;
    options.num_gpu_experts = limits->experts;
    options.gpu_memory_limit = limits->device(limits->experts / 3);
    options.host_memory = limits->host(limits->experts / 3);
    const auto model = load_model(rank_runtime(), options);
    INFO(mode << ", rank " << rank_runtime().rank() << " of " << rank_runtime().size());
    rank_runtime().device().synchronize();
    emulated::set_stream_delays(11 + rank_runtime().rank(), 100);
    check_greedy(*model, golden);
    rank_runtime().device().synchronize();
    emulated::reset();
    CHECK(model->runner->offload_stats().moves > 0);
  }
}

#endif

TEST_CASE("steps with experts off the device are not recorded, nor run ahead of") {
  const Golden golden = read_golden("v3");
  LoadOptions options = offload_options(golden.dir);
  std::optional<OffloadLimits> limits;
  limits.emplace(*load_model(rank_runtime(), options));
  options.enforce_eager = false;
  options.expert_offload = "auto";
  options.num_gpu_experts = 1 << 10;
  options.gpu_memory_limit = limits->device(limits->experts / 2);
  const auto model = load_model(rank_runtime(), options);
  CHECK_FALSE(model->runner->can_run_ahead(
      step(*model, std::span(golden.greedy).first(1), 0, ExpertExchange::kReplicated, true), -1));
  CHECK(rank_runtime().device().ledger().current(MemoryUse::kGraphs) == 0);
  const std::vector<std::string> lines = memory_lines(model->plan, rank_runtime().device());
  CHECK_THAT(lines.back(), Catch::Contains(fmt::format(
                               "routed experts: {} on the device, {} in host memory",
                               limits->experts / 2, limits->experts - limits->experts / 2)));
}

TEST_CASE("what fits is not offloaded") {
  const Golden golden = read_golden("v3");
  LoadOptions options = offload_options(golden.dir);
  options.expert_offload = "auto";
  const auto model = load_model(rank_runtime(), options);
  CHECK(model->experts == nullptr);
  CHECK(model->plan.options.experts == ExpertHome::kDevice);
}

TEST_CASE("wrong modes and budgets are one line each") {
  const Golden golden = read_golden("v3");
  LoadOptions options = offload_options(golden.dir);
  for (const char* memory : {"0", "-1GiB", "9999TiB", "much"}) {
    options.host_memory = memory;
    INVALID(load_model(rank_runtime(), options), "--host-memory " + std::string(memory));
  }
  options.host_memory = "";
  for (const char* mode : {"host", "none", ""}) {
    options.expert_offload = mode;
    INVALID(load_model(rank_runtime(), options), "--expert-offload " + std::string(mode),
            "use off, auto, cpu or stream");
  }
  // Too little for everything else: the device holds no expert, and it is still too small.
  std::optional<OffloadLimits> limits;
  options.expert_offload = "off";
  limits.emplace(*load_model(rank_runtime(), options));
  options.num_gpu_experts = 0;
  INVALID(load_model(rank_runtime(), options), "--num-gpu-experts 0: the others need a home");
  options.expert_offload = "auto";
  options.gpu_memory_limit = std::to_string(limits->others - 4096);
  INVALID(load_model(rank_runtime(), options), "does not fit: rank");
}

}  // namespace
}  // namespace shoal
