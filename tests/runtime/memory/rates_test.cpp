// Rates against the limits by hand: bandwidth over bytes, FLOPs over parameters, collectives.
#include "runtime/memory/rates.h"

#include <catch2/catch.hpp>

#include "tests/runtime/memory/plan_cases.h"

namespace shoal {
namespace {

struct Case {
  Case(const std::string& model, const std::string& gpus, PlanOptions options = {})
      : choice(parse_gpus(gpus)), planner(published(model), {}, choice.device) {
    options.ranks = choice.count;
    plan = planner.plan(options, gpu_budget(choice.device, 0.9, choice.count));
  }
  DeviceChoice choice;
  Planner planner;
  MemoryPlan plan;
};

TEST_CASE("decode at batch 1 is bandwidth over what a token reads") {
  Case c("V2-Lite", "H100");
  const Rate rate = decode_rate(c.planner, c.plan, 1, 1000);
  // 2.45 B parameters in bfloat16; the absorbed forms take the place of kv_b_proj, bytes alike.
  const double bytes = 2.45e9 * 2 + 1000 * 31104.0;
  CHECK(rate.tokens_per_s == Approx(3350e9 / bytes).epsilon(0.01));
  CHECK(rate.time.limit() == "memory bandwidth");
  Case dense("Llama-8B", "RTX 4090");
  // Without the embedding: 7.50 B of the 8.03 B.
  CHECK(decode_rate(dense.planner, dense.plan, 1, 1).tokens_per_s ==
        Approx(1008e9 / (7.505e9 * 2)).epsilon(0.01));
}

TEST_CASE("a batch reads the experts that it touches") {
  Case c("V2-Lite", "H100");
  const auto bytes_of = [&](int64_t batch) {
    return decode_rate(c.planner, c.plan, batch, 1).time.memory_s * 3350e9;
  };
  const double experts = c.plan.ranks[0].weights.of(TensorKind::kRoutedExperts);
  const auto touched = [](int64_t batch) { return 1 - std::pow(1 - 6.0 / 64, batch); };
  CHECK(bytes_of(8) - bytes_of(1) == Approx(experts * (touched(8) - touched(1))).epsilon(0.001));
  CHECK(bytes_of(512) - bytes_of(256) < 0.01 * experts);
}

TEST_CASE("prefill is FLOP/s over two FLOPs a parameter, and attention") {
  Case c("Llama-70B", "8xH100", {.max_num_batched_tokens = 8192});
  const Rate rate = prefill_rate(c.planner, c.plan, 2048);
  // 70.55 B less the embedding's 1.05 B.
  const double products = 2 * 69.5e9, attention = 1024 * 4.0 * 128 * 64 * 80;
  CHECK(8192 / rate.time.compute_s == Approx(8 * 989.4e12 / (products + attention)).epsilon(0.01));
  CHECK(rate.time.limit() == "arithmetic");
}

TEST_CASE("V3 at batch 1 on eight GPUs waits for collectives as long as for memory") {
  Case c("R1", "8xH200");
  const Rate rate = decode_rate(c.planner, c.plan, 1, 1024);
  // One after the embedding, two in each dense layer, three in each mixture; 14 KiB each.
  const double rounds = 1 + 3 * 2 + 58 * 3;
  CHECK(rate.time.collectives_s == Approx(rounds * (7e-6 + 2 * 7168 * 2 * 7 / 8 / 450e9)).epsilon(0.001));
  CHECK(rate.time.limit() == "collectives");
  Case single("Qwen-7B", "H100");
  CHECK(decode_rate(single.planner, single.plan, 1, 1).time.collectives_s == 0);
}

TEST_CASE("experts on the host are read at the host's pace") {
  Case c("V2", "RTX 4090", {.quantization = "int4", .experts = ExpertHome::kHost});
  REQUIRE(c.plan.fits);
  const Rate rate = decode_rate(c.planner, c.plan, 1, 1024, {.gigabytes_per_s = 200});
  const double off = static_cast<double>(c.plan.ranks[0].experts_on_host);
  CHECK(rate.time.host_s == Approx(off * 6 / 160 / 200e9).epsilon(0.001));
  CHECK(rate.time.limit() == "experts off the device");
}

}  // namespace
}  // namespace shoal
