#include "runtime/memory/memory_plan.h"

#include <catch2/catch.hpp>

#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/runtime/memory/plan_cases.h"

namespace shoal {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

MemoryPlan plan_on(const std::string& model, const std::string& gpus, PlanOptions options = {}) {
  const DeviceChoice choice = parse_gpus(gpus);
  Planner planner(published(model), {}, choice.device);
  options.ranks = choice.count;
  return planner.plan(options, gpu_budget(choice.device, 0.9, choice.count));
}

TEST_CASE("models fit where they are known to fit, and do not where they cannot") {
  CHECK(plan_on("Qwen-7B", "RTX 4090").fits);
  CHECK_FALSE(plan_on("Qwen-14B", "RTX 4090").fits);
  CHECK(plan_on("Qwen-14B", "RTX 4090", {.quantization = "int4"}).fits);
  CHECK_FALSE(plan_on("V2-Lite", "RTX 4090").fits);
  CHECK(plan_on("V2-Lite", "RTX 4090", {.quantization = "int4"}).fits);
  CHECK(plan_on("V2-Lite", "H100").fits);
  CHECK_FALSE(plan_on("V3", "8xH100").fits);
  CHECK(plan_on("V3", "8xH100", {.quantization = "int4"}).fits);
  CHECK(plan_on("R1", "8xH200").fits);
  CHECK(plan_on("Llama-70B", "2xH100").fits);
}

TEST_CASE("a plan is the sum of its parts and stays within the budget") {
  const MemoryPlan plan = plan_on("V2-Lite", "2xRTX 4090", {.quantization = "fp8"});
  REQUIRE(plan.fits);
  REQUIRE(plan.ranks.size() == 2);
  for (const RankPlan& rank : plan.ranks) {
    CHECK(rank.total() <= plan.budget.bytes);
    CHECK(rank.kv_cache >= static_cast<uint64_t>(plan.kv_bytes_per_token) * plan.num_pages * 16);
    CHECK(rank.of(MemoryUse::kWeights) == rank.weights.total() + rank.rope_table);
    CHECK(rank.step.workspace > 0);
    CHECK(rank.communication > 0);
  }
  // One page more would not fit.
  Planner planner(published("V2-Lite"), {}, device_named("RTX 4090"));
  const RankPlan& full = plan.fullest();
  CHECK(full.total() - full.kv_cache + planner.kv_cache_bytes(plan.options, full.rank, plan.num_pages + 1) >
        plan.budget.bytes);
  CHECK(plan.max_model_len <= plan.num_pages * 16);
}

TEST_CASE("activations grow with the step, and V3's are far from a constant") {
  Planner planner(published("V3"), {}, device_named("H200"));
  PlanOptions o{.ranks = 8};
  const auto workspace = [&](int64_t tokens) {
    o.max_num_batched_tokens = tokens;
    return planner.rank_needs(o, 7, 8192).step.workspace;
  };
  const uint64_t small = workspace(64), middle = workspace(2048), large = workspace(8192);
  CHECK(small < middle);
  CHECK(middle < large);
  // Of 8,192 tokens all may choose 8 experts of this rank: rows of 7168 and twice 2048 in bfloat16.
  CHECK(large > uint64_t{8192} * 8 * (7168 + 2 * 2048) * 2);
  CHECK(large < uint64_t{8192} * 8 * (7168 + 2 * 2048) * 2 * 2);
}

TEST_CASE("the KV cache follows what is asked for") {
  const DeviceSpec device = device_named("H100");
  Planner planner(published("V2-Lite"), {}, device);
  const PlanBudget budget = gpu_budget(device, 0.9, 1);
  CHECK(planner.plan({.kv_cache_tokens = 1000}, budget).num_pages == 63);
  const MemoryPlan by_bytes = planner.plan({.kv_cache_memory_bytes = int64_t{1} << 30}, budget);
  CHECK(by_bytes.ranks[0].kv_cache <= kGiB);
  CHECK(by_bytes.ranks[0].kv_cache > kGiB - (1 << 20));
  // More than every sequence at its longest is not made.
  const MemoryPlan few = planner.plan({.max_model_len = 4096, .max_num_seqs = 4}, budget);
  CHECK(few.num_pages == 4 * 256);
  CHECK(few.max_model_len == 4096);
  PlanOptions fp8{.kv_cache_dtype = "fp8"};
  CHECK(planner.kv_bytes_per_token(fp8, 0) == 27 * (512 + 4 + 128));
  INVALID(planner.plan({.kv_cache_dtype = "fp4"}, budget), "--kv-cache-dtype fp4");
  INVALID(planner.plan({.max_model_len = 1 << 20}, budget), "--max-model-len 1048576");
}

TEST_CASE("DP attention holds the latent once, not on every rank") {
  const MemoryPlan tp = plan_on("V3", "8xH200");
  const MemoryPlan dp = plan_on("V3", "8xH200", {.dp_attention = true});
  REQUIRE(tp.fits);
  CHECK(dp.kv_bytes_per_token == tp.kv_bytes_per_token);
  CHECK(dp.ranks[3].weights.of(TensorKind::kAttention) >
        4 * tp.ranks[3].weights.of(TensorKind::kAttention));
  if (dp.fits) CHECK(dp.kv_tokens() > tp.kv_tokens());
}

TEST_CASE("experts go to the host when asked to, and the rest of the plan stays") {
  const DeviceSpec device = device_named("RTX 4090");
  Planner planner(published("V2"), {}, device);
  PlanBudget budget = gpu_budget(device, 0.9, 1);
  PlanOptions o{.quantization = "int4"};
  CHECK_FALSE(planner.plan(o, budget).fits);
  o.experts = ExpertHome::kHost;
  const MemoryPlan plan = planner.plan(o, budget);
  CHECK(plan.fits);
  const RankPlan& rank = plan.ranks[0];
  CHECK(rank.experts_on_host > 90 * kGiB);
  CHECK(rank.experts_on_host < rank.weights.of(TensorKind::kRoutedExperts));
  CHECK(rank.total() <= budget.bytes);
  o.experts = ExpertHome::kDisk;
  budget.host = 64 * kGiB;
  const MemoryPlan disk = planner.plan(o, budget);
  CHECK(disk.ranks[0].experts_on_host <= 64 * kGiB);
  CHECK(disk.ranks[0].experts_on_host + disk.ranks[0].experts_on_disk == rank.experts_on_host);
}

TEST_CASE("host memory for KV pages is planned in whole pages, and experts get the rest") {
  const DeviceSpec device = device_named("RTX 4090");
  Planner planner(published("V2"), {}, device);
  PlanBudget budget = gpu_budget(device, 0.9, 1);
  budget.host = 64 * kGiB;
  PlanOptions o{.quantization = "int4", .experts = ExpertHome::kDisk};
  const MemoryPlan without = planner.plan(o, budget);
  CHECK(without.ranks[0].swap == 0);
  CHECK(without.host_bytes() == without.ranks[0].experts_on_host);
  o.swap_bytes = 10 * kGiB;
  MemoryPlan with = planner.plan(o, budget);
  const auto page = static_cast<uint64_t>(with.kv_bytes_per_token * o.page_size);
  const uint64_t swap = with.ranks[0].swap;
  CHECK(swap % page == 0);
  CHECK(swap <= o.swap_bytes);
  CHECK(swap + page > o.swap_bytes);
  CHECK(with.host_bytes() <= budget.host);
  CHECK(with.ranks[0].experts_on_host + 9 * kGiB < without.ranks[0].experts_on_host);
  CHECK(with.ranks[0].total() == without.ranks[0].total());  // nothing of it is the device's
  planner.settle(with, with.num_pages);
  CHECK(with.ranks[0].swap == swap);
}

TEST_CASE("--swap-space: what auto means, and what is refused") {
  CHECK(parse_swap_space("auto", /*on_gpu=*/true, false, 0, 1) == 4 * kGiB);
  CHECK(parse_swap_space("auto", true, false, 16 * kGiB, 2) == kGiB);
  CHECK(parse_swap_space("auto", false, false, 512 * kGiB, 1) == 0);
  CHECK(parse_swap_space("auto", false, /*to_files=*/true, 512 * kGiB, 1) == kGiB);
  CHECK(parse_swap_space("0", true, true, 512 * kGiB, 1) == 0);
  CHECK(parse_swap_space("3GiB", false, false, 6 * kGiB, 2) == 3 * kGiB);
  INVALID(parse_swap_space("3GiB", false, false, 5 * kGiB, 2), "--swap-space 3GiB", "5.00 GiB");
  INVALID(parse_swap_space("-1", true, false, 0, 1), "--swap-space -1");
  INVALID(parse_swap_space("lots", true, false, 0, 1), "--swap-space lots");
}

TEST_CASE("what does not fit says what it needs and what there is") {
  const MemoryPlan plan = plan_on("V3", "1xRTX 4090");
  CHECK_FALSE(plan.fits);
  CHECK_THAT(plan.obstacle, Catch::Contains("rank 0 needs 6"));
  CHECK_THAT(plan.obstacle, Catch::Contains("has 21.59 GiB"));
}

}  // namespace
}  // namespace shoal
