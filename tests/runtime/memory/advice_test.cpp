// Advice fits, and what is smaller of its kind does not.
#include "runtime/memory/advice.h"

#include <catch2/catch.hpp>

#include "tests/runtime/memory/plan_cases.h"

namespace shoal {
namespace {

struct Question {
  const char* model;
  const char* gpus;
  PlanOptions options;
};

struct Answer {
  Answer(const Question& q, uint64_t host = 0)
      : choice(parse_gpus(q.gpus)), planner(published(q.model), {}, choice.device) {
    request.options = q.options;
    request.options.ranks = choice.count;
    request.gpus = choice.count;
    request.budget = gpu_budget(choice.device, 0.9, choice.count);
    request.budget.host = host;
    advice = advise(planner, request);
  }
  const Advice* with(const std::string& flag) const {
    for (const Advice& a : advice) {
      if (join_flags(a.flags).find(flag) != std::string::npos) return &a;
    }
    return nullptr;
  }
  bool fits(const PlanOptions& options) { return planner.plan(options, request.budget).fits; }

  DeviceChoice choice;
  Planner planner;
  AdviceRequest request;
  std::vector<Advice> advice;
};

TEST_CASE("all that is advised fits") {
  const Question questions[] = {
      {"V2-Lite", "1xRTX 4090", {}},
      {"V3", "8xH100", {}},                {"V3", "1xH100", {}},
      {"R1", "1xRTX 4090", {}},            {"Llama-70B", "2xRTX 4090", {}},
      {"Qwen-32B", "1xH100", {.max_model_len = 131072}},
  };
  for (const Question& q : questions) {
    INFO(q.model << " on " << q.gpus);
    Answer answer(q, uint64_t{1} << 40);
    CHECK_FALSE(answer.fits(answer.request.options));
    CHECK_FALSE(answer.advice.empty());
    for (const Advice& a : answer.advice) {
      INFO(a.what << ": " << join_flags(a.flags));
      CHECK(a.plan.fits);
      CHECK_FALSE(a.flags.empty());
      CHECK(a.decode_tokens_per_s > 0);
      CHECK(a.plan.fullest().total() <= a.plan.budget.bytes);
    }
  }
}

TEST_CASE("the finest quantisation that fits is advised") {
  Answer answer({"V2-Lite", "1xRTX 4090", {}});
  const Advice* a = answer.with("--quantization");
  REQUIRE(a != nullptr);
  CHECK(join_flags(a->flags) == "--quantization fp8");
  Answer tighter({"Qwen-32B", "1xRTX 4090", {}});
  a = tighter.with("--quantization");
  REQUIRE(a != nullptr);
  CHECK(join_flags(a->flags) == "--quantization int4");
  for (const std::string quantization : {"fp8", "int8"}) {
    PlanOptions o = tighter.request.options;
    o.quantization = quantization;
    CHECK_FALSE(tighter.fits(o));
  }
}

TEST_CASE("the longest context that fits is advised: a page more does not") {
  Answer answer({"Qwen-32B", "1xH100", {.max_model_len = 131072}});
  const Advice* a = answer.with("--max-model-len");
  REQUIRE(a != nullptr);
  CHECK(a == &answer.advice.front());
  PlanOptions o = a->options;
  CHECK(answer.fits(o));
  o.max_model_len += o.page_size;
  CHECK_FALSE(answer.fits(o));
}

TEST_CASE("the fewest further GPUs are advised: one less does not do") {
  Answer answer({"Llama-70B", "1xH100", {}});
  const Advice* a = answer.with("--tensor-parallel-size");
  REQUIRE(a != nullptr);
  CHECK(a->options.ranks == 3 - (a->options.ranks == 2 ? 1 : 0));
  PlanOptions o = a->options;
  o.ranks -= 1;
  CHECK_FALSE(answer.fits(o));
}

TEST_CASE("sequences are halved until the step fits: twice as many do not") {
  // A budget between what 1024 and a few sequences take: their logits are what is too much.
  const DeviceSpec device = device_named("RTX 4090");
  Planner planner(published("Qwen-1.5B"), {}, device);
  AdviceRequest request;
  request.options.max_num_seqs = 1024;
  request.options.max_num_batched_tokens = 1024;
  request.options.max_model_len = 2048;
  PlanOptions few = request.options;
  few.max_num_seqs = 64;
  request.budget = gpu_budget(device, 0.9, 1);
  request.budget.bytes = uint64_t{1} << 40;
  const RankPlan needs = planner.rank_needs(few, 0, 2048);
  request.budget.bytes = needs.total() + request.budget.driver + planner.kv_cache_bytes(few, 0, 128) + (8 << 20);
  REQUIRE_FALSE(planner.plan(request.options, request.budget).fits);
  const std::vector<Advice> advice = advise(planner, request);
  REQUIRE_FALSE(advice.empty());
  const auto a = std::find_if(advice.begin(), advice.end(), [](const Advice& x) {
    return x.flags.front().starts_with("--max-num-seqs");
  });
  REQUIRE(a != advice.end());
  PlanOptions twice = a->options;
  twice.max_num_seqs *= 2;
  CHECK_FALSE(planner.plan(twice, request.budget).fits);
}

TEST_CASE("R1 on one consumer GPU: experts in host memory, or a distilled model") {
  Answer answer({"R1", "1xRTX 4090", {}}, uint64_t{512} << 30);
  const Advice* offload = answer.with("--expert-offload auto");
  REQUIRE(offload != nullptr);
  CHECK(offload->options.quantization == "int4");  // 671 GB would not fit into 512 GiB
  const Advice* distilled = answer.with("--model");
  REQUIRE(distilled != nullptr);
  // 32 B in int4 fits into 24 GB, 70 B does not.
  CHECK(join_flags(distilled->flags) ==
        "--model deepseek-ai/DeepSeek-R1-Distill-Qwen-32B --quantization int4");
  Answer without({"R1", "1xRTX 4090", {}}, uint64_t{64} << 30);
  const Advice* disk = without.with("--expert-offload auto");
  REQUIRE(disk != nullptr);
  CHECK(disk->plan.ranks[0].experts_on_disk > 0);
  CHECK(disk->plan.ranks[0].experts_on_host <= uint64_t{64} << 30);
}

TEST_CASE("what is nobody's to change is left alone") {
  const Question q{"V2-Lite", "1xRTX 4090", {}};
  Answer answer(q);
  answer.request.may_quantise = answer.request.may_offload = answer.request.may_change_model = false;
  for (const Advice& a : advise(answer.planner, answer.request)) {
    CHECK(a.options.quantization == "none");
    CHECK(a.options.experts == ExpertHome::kDevice);
    CHECK(a.model.empty());
  }
}

}  // namespace
}  // namespace shoal
