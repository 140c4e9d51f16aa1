// Steps in two overlapped halves (runtime/model/overlap.h) against the same steps as a whole: every bit on
// the CPU, golden_test's tolerance on GPUs, whose kernels for few rows round differently. All ranks run the
// same steps; rank 0 has the logits.
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/engine/loader.h"
#include "runtime/engine/step_batch.h"
#include "runtime/model/overlap.h"
#include "tests/support/ranks.h"
#ifdef SHOAL_CUDA_EMULATED
#include "tests/emulated_cuda/control.h"
#include "tests/emulated_cuda/nccl_control.h"
#endif

namespace shoal {
namespace {

constexpr double kTolerance = 1e-4;  // of the largest logit, as in golden_test.cpp
constexpr int64_t kAlways = 0, kNever = int64_t{1} << 40;

struct Golden {
  std::string dir;
  std::vector<int32_t> tokens;
  double max_abs_logit = 0;
};

Golden read_golden(const std::string& name) {
  const std::string dir = std::string(SHOAL_SOURCE_DIR) + "/tests/golden/data/" + name;
  const auto json = nlohmann::json::parse(std::ifstream(dir + "/golden.json"));
  return {dir, json["prompts"][2].get<std::vector<int32_t>>(), json["max_abs_logit"].get<double>()};
}

std::unique_ptr<LoadedModel> load(const Golden& golden, bool dp_attention, int64_t overlap_min_tokens) {
  LoadOptions options;
  options.model_dir = golden.dir;
  options.dtype = "float32";
  options.dp_attention = dp_attention;
  options.page_size = 8;
  options.max_model_len = 128;
  options.kv_cache_tokens = 256;
  options.enforce_eager = true;
  options.overlap_min_tokens = overlap_min_tokens;
  return load_model(rank_runtime(), options);
}

// Three sequences: their prompts, then a step in which one goes on with its prompt and two are fed
// several generated tokens (as a draft is): halves end inside sequences of both kinds.
std::array<StepPlan, 2> make_steps(const Golden& golden, int dp_ranks) {
  std::array<StepPlan, 2> steps;
  for (int32_t i = 0; i < 3; ++i) {
    SequenceSlice slice;
    slice.dp_rank = i * dp_ranks / 3;
    slice.all_logits = slice.sample = true;
    for (int32_t p = 0; p < 5; ++p) slice.pages.push_back(5 * i + (p * 3) % 5);
    const auto first = golden.tokens.begin() + i, middle = first + 7 + 5 * i;
    slice.tokens.assign(first, middle);
    steps[0].slices.push_back(slice);
    slice.first_position = 7 + 5 * i;
    slice.tokens.assign(middle, middle + 3 + 2 * i);
    slice.absorbed = i != 2;
    steps[1].slices.push_back(slice);
  }
  for (StepPlan& step : steps) step.exchange = ExpertExchange::kAllToAll;
  // Absorbed slices come first within a rank; a rank's own order is that of the plan.
  return steps;
}

std::vector<float> run(LoadedModel& model, const Golden& golden, bool dp_attention) {
  std::vector<float> all;
  for (const StepPlan& step : make_steps(golden, dp_attention ? rank_runtime().size() : 1)) {
    const std::span<const float> logits = model.runner->run(step);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

void check_same(const std::vector<float>& whole, const std::vector<float>& halves,
                const Golden& golden) {
  if (rank_runtime().rank() != 0) return;
  CHECK((!whole.empty() && whole.size() == halves.size()));
  if (rank_runtime().on_cpu()) {
    CHECK(whole == halves);
    return;
  }
  size_t differ = 0;
  for (size_t i = 0; i < std::min(whole.size(), halves.size()); ++i) {
    if (!(std::fabs(whole[i] - halves[i]) <= kTolerance * golden.max_abs_logit)) ++differ;
  }
  CHECK(differ == 0);
}

std::vector<std::string> names() {
  if (rank_runtime().on_cpu()) return {"v2-lite", "v2-grouped", "v3", "v3-whole-groups"};
  if (rank_runtime().size() > 1) return {"v3"};
  return {"v2-lite", "v3"};
}

TEST_CASE("a step in two halves gives what it gives as a whole") {
  for (const std::string& name : names()) {
    const Golden golden = read_golden(name);
    for (bool dp_attention : {false, true}) {
      INFO(name << ", dp attention " << dp_attention);
      const auto whole = run(*load(golden, dp_attention, kNever), golden, dp_attention);
      const auto model = load(golden, dp_attention, kAlways);
      check_same(whole, run(*model, golden, dp_attention), golden);
    }
  }
}

TEST_CASE("which steps run in halves") {
  ModelBatch batch;
  batch.query_start = {0, 100};
  batch.tokens_per_rank = {100, 0};
  ParallelLayout layout{0, 2, false, 50};
  CHECK_FALSE(can_overlap(layout, batch));  // replicated
  batch.exchange = ExpertExchange::kAllToAll;
  CHECK(can_overlap(layout, batch));
  layout.overlap_min_tokens = 51;
  CHECK_FALSE(can_overlap(layout, batch));
  layout.overlap_min_tokens = 50;
  batch.query_start.clear();
  CHECK_FALSE(can_overlap(layout, batch));
}

std::vector<int32_t> values(const Tensor& tensor) {
  std::vector<int32_t> host(tensor.num_elements());
  rank_runtime().device().copy_to_host(host.data(), tensor.data, tensor.num_bytes());
  return host;
}

TEST_CASE("halves of a batch: sequences that are cut, kept whole, and left out") {
  StepPlan plan;
  const auto add = [&](int32_t first, size_t tokens, bool absorbed) {
    SequenceSlice slice;
    slice.first_position = first;
    slice.tokens.assign(tokens, 1);
    slice.pages = {static_cast<int32_t>(plan.slices.size()), 9};
    slice.absorbed = absorbed;
    plan.slices.push_back(slice);
  };
  add(10, 1, true);
  add(11, 4, true);  // rows 1 to 4
  add(0, 2, false);
  add(6, 3, false);  // rows 7 to 9
  const ParallelLayout layout{rank_runtime().rank(), rank_runtime().size()};
  ExecContext ctx = rank_runtime().exec(DType::kF32);
  const auto split = [&] {
    const StepBatch step(plan, layout, /*page_size=*/16);  // two hold 26 tokens
    const auto size = static_cast<int64_t>(step.numbers().size());
    return split_batch(ctx, layout, step.on_device(ctx.workspace.from_host(
                                        DType::kI32, step.numbers().data(), {size})));
  };
  auto [a, b] = split();  // 10 rows: cut after 5, between sequences
  CHECK((a.num_tokens == 5 && a.num_decode_tokens == 5 && a.prefills.empty()));
  CHECK(values(a.decode.query_start) == std::vector<int32_t>{0, 1, 5});
  CHECK(values(a.all.context_len) == std::vector<int32_t>{11, 15});
  CHECK((b.num_tokens == 5 && b.num_decode_tokens == 0 && b.decode.context_len.dim(0) == 0));
  CHECK(values(b.all.query_start) == std::vector<int32_t>{0, 2, 5});
  CHECK(values(b.all.block_tables) == std::vector<int32_t>{2, 9, 3, 9});
  CHECK((a.tokens_per_rank[0] == 5 && b.tokens_per_rank[0] == 5));

  add(20, 6, false);  // 16 rows: cut after 8, inside the sequence of rows 7 to 9
  std::tie(a, b) = std::pair{split()[0], split()[1]};
  CHECK(values(a.all.query_start) == std::vector<int32_t>{0, 1, 5, 7, 8});
  CHECK(values(a.all.context_len) == std::vector<int32_t>{11, 15, 2, 7});
  REQUIRE((a.prefills.size() == 2 && b.prefills.size() == 2));
  CHECK((a.prefills[1].row_begin == 7 && a.prefills[1].row_end == 8));
  CHECK((a.prefills[1].context_len == 7 && a.prefills[1].sequence == 3));
  CHECK((b.prefills[0].row_begin == 0 && b.prefills[0].row_end == 2));
  CHECK((b.prefills[0].context_len == 9 && b.prefills[0].sequence == 0));
  CHECK(values(b.all.context_len) == std::vector<int32_t>{9, 26});
  CHECK(values(b.positions) == std::vector<int32_t>{7, 8, 20, 21, 22, 23, 24, 25});
  CHECK(values(b.all.block_tables) == std::vector<int32_t>{3, 9, 4, 9});

  plan.slices.resize(2);  // 5 rows: cut after 3, inside the second of two decode sequences
  std::tie(a, b) = std::pair{split()[0], split()[1]};
  CHECK((a.num_decode_tokens == 3 && b.num_decode_tokens == 2));
  CHECK(values(a.decode.context_len) == std::vector<int32_t>{11, 13});
  CHECK(values(b.decode.context_len) == std::vector<int32_t>{15});
  plan.slices.resize(1);  // one row: nothing is left for the second half
  std::tie(a, b) = std::pair{split()[0], split()[1]};
  CHECK((a.num_tokens == 1 && b.num_tokens == 0 && b.all.context_len.dim(0) == 0));
  CHECK(values(b.all.query_start) == std::vector<int32_t>{0});
}

#ifdef SHOAL_CUDA_EMULATED

// A buffer that one of the two streams takes again too early, or an event that lacks, shows when the
// streams' work is late by times of its own.
TEST_CASE("two halves on streams that are late, threads in several orders") {
  if (rank_runtime().on_cpu()) return;
  const Golden golden = read_golden("v3");
  for (bool dp_attention : {true, false}) {
    const auto whole = run(*load(golden, dp_attention, kNever), golden, dp_attention);
    const auto model = load(golden, dp_attention, kAlways);
    for (unsigned seed : {1u, 2u, 3u}) {
      INFO("seed " << seed << ", dp attention " << dp_attention);
      emulated::set_thread_order_seed(seed);
      emulated::set_stream_delays(10 * seed + rank_runtime().rank(), 300);
      check_same(whole, run(*model, golden, dp_attention), golden);
    }
    emulated::reset();
  }
}

// Attention kernels that begin while a group of collectives is under way.
int attention_beside_collectives(LoadedModel& model, const Golden& golden) {
  emulated::take_trace();
  run(model, golden, /*dp_attention=*/true);
  rank_runtime().device().synchronize();
  int beside = 0, attention = 0, under_way = 0;
  for (const std::string& what : emulated::take_trace()) {
    if (what == "NCCL group begins") ++under_way;
    if (what == "NCCL group ends") --under_way;
    const bool attends = what.find("paged_fma_kernel") != std::string::npos ||
                         what.find("prefill_fma_kernel") != std::string::npos;
    attention += attends;
    beside += attends && under_way > 0;
  }
  CHECK(attention > 0);
  return beside;
}

TEST_CASE("one half attends while the other half's rows are between ranks") {
  if (rank_runtime().on_cpu() || rank_runtime().size() == 1) return;
  const Golden golden = read_golden("v3-whole-groups");
  const auto whole = load(golden, true, kNever);
  const auto halves = load(golden, true, kAlways);
  // The others are late, so that rank 0's exchanges last.
  if (rank_runtime().rank() != 0) emulated::inject_nccl_fault(emulated::NcclFault::kLate, 0);
  const int beside_whole = attention_beside_collectives(*whole, golden);
  const int beside_halves = attention_beside_collectives(*halves, golden);
  emulated::inject_nccl_fault(emulated::NcclFault::kNone, 0);
  emulated::reset();
  CHECK(beside_whole == 0);
  // rank 0's trace is the one whose exchanges last; others see theirs shorter.
  if (rank_runtime().rank() == 0) CHECK(beside_halves >= 3);
}

#endif

}  // namespace
}  // namespace shoal
