#include "server/plan_command.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/rank_bytes.h"
#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"

namespace shoal {
namespace {

using nlohmann::json;

std::string golden(const std::string& name) { return SHOAL_SOURCE_DIR "/tests/golden/data/" + name; }

json answer(PlanCommandOptions options) {
  options.json = true;
  return json::parse(plan_answer(options).text);
}

TEST_CASE("JSON of a plan that fits has the parts of each rank, capacity and rates") {
  const json plan = answer({.model = "V2-Lite", .gpus = "2xH100"});
  CHECK(plan["model"] == "deepseek-ai/DeepSeek-V2-Lite");
  CHECK(plan["architecture"] == "DeepseekV2ForCausalLM");
  CHECK(plan["fits"] == true);
  CHECK(plan["device"]["name"] == "H100");
  CHECK(plan["device"]["count"] == 2);
  CHECK(plan["tensor_parallel_size"] == 2);
  CHECK(plan["kv_bytes_per_token"] == 31104);
  CHECK_FALSE(plan.contains("advice"));
  REQUIRE(plan["ranks"].size() == 2);
  for (const json& rank : plan["ranks"]) {
    uint64_t sum = 0;
    for (const auto& [name, bytes] : rank["bytes"].items()) sum += bytes.get<uint64_t>();
    CHECK(sum == rank["total_bytes"]);
    CHECK(rank["left_bytes"].get<int64_t>() >= 0);
    for (const char* kind : {"embedding", "attention", "routed experts", "KV cache", "activations",
                             "kernel scratch", "communication", "graphs", "driver (estimate)"}) {
      INFO(kind);
      CHECK(rank["bytes"].contains(kind));
    }
  }
  REQUIRE(plan["rates"].size() == 3);
  for (const json& rate : plan["rates"]) {
    CHECK(rate["tokens_per_s"].get<double>() > 0);
    CHECK_FALSE(rate["limit"].get<std::string>().empty());
  }
  for (const json& row : plan["largest_batch"]) {
    CHECK(row["batch"].get<int64_t>() == plan["kv_tokens"].get<int64_t>() / row["context"].get<int64_t>());
  }
}

TEST_CASE("JSON of a plan that does not fit has advice, the smallest first") {
  const json plan = answer({.model = "V3", .gpus = "8xH100"});
  CHECK(plan["fits"] == false);
  CHECK_THAT(plan["obstacle"].get<std::string>(), Catch::Contains("rank 0 needs"));
  REQUIRE_FALSE(plan["advice"].empty());
  CHECK(plan["advice"][0]["flags"] == json({"--quantization int4"}));
  for (const json& advice : plan["advice"]) {
    CHECK(advice["left_bytes"].get<int64_t>() >= 0);
    CHECK(advice["decode_tokens_per_s"].get<double>() > 0);
  }
}

TEST_CASE("what is advised, pasted, fits") {
  PlanCommandOptions options{.model = "V2-Lite", .gpus = "1xRTX 4090"};
  const json plan = answer(options);
  REQUIRE(plan["fits"] == false);
  REQUIRE(plan["advice"][0]["flags"][0] == "--quantization fp8");
  options.quantization = "fp8";
  CHECK(plan_answer(options).fits);
}

TEST_CASE("the exit code says whether it fits") {
  CHECK(run_plan({.model = "Qwen-7B", .gpus = "H100", .json = true}) == 0);
  CHECK(run_plan({.model = "V3", .gpus = "H100", .json = true}) == 1);
}

TEST_CASE("text for people names the verdict, the parts and the change to make") {
  const std::string fits = plan_answer({.model = "R1-Distill-Qwen-7B", .gpus = "1x\"RTX 4090\""}).text;
  for (const char* part : {"FITS", "KV cache", "activations", "largest batch by context", "memory bandwidth",
                           "decode, batch 1", "prefill", "left"}) {
    CHECK_THAT(fits, Catch::Contains(part));
  }
  const std::string does_not = plan_answer({.model = "R1", .gpus = "1xRTX 4090", .host_memory = "512GiB"}).text;
  for (const char* part : {"DOES NOT FIT", "smallest change that fits", "--expert-offload auto",
                           "--model deepseek-ai/DeepSeek-R1-Distill-Qwen-32B --quantization int4"}) {
    CHECK_THAT(does_not, Catch::Contains(part));
  }
}

TEST_CASE("a checkpoint that is here is planned by its headers, on the CPU too") {
  const std::string dir = golden("v3-fp8");
  const ModelConfig config = read_model_config(dir);
  const auto checkpoint = Checkpoint::open(dir);
  const json plan = answer({.model = dir, .device = "cpu", .host_memory = "4GiB", .tensor_parallel_size = 3});
  REQUIRE(plan["ranks"].size() == 3);
  for (int rank = 0; rank < 3; ++rank) {
    const RankBytes bytes = rank_bytes(*checkpoint, config, {.ranks = 3, .rank = rank});
    CHECK(plan["ranks"][rank]["bytes"]["routed experts"] == bytes.of(TensorKind::kRoutedExperts).held);
    CHECK(plan["ranks"][rank]["bytes"]["attention"] == bytes.of(TensorKind::kAttention).held);
    CHECK_FALSE(plan["ranks"][rank]["bytes"].contains("sampler"));
  }
  CHECK(plan["fits"] == true);
}

TEST_CASE("a folder with nothing but a config.json is enough") {
  const test::TempDir folder;
  std::filesystem::copy_file(SHOAL_SOURCE_DIR "/tests/runtime/checkpoint/configs/r1-distill-llama-8b.json",
                             folder.path("config.json"));
  const json plan = answer({.model = folder.path(), .gpus = "1xL40S"});
  CHECK(plan["weights"]["bytes"].get<double>() == Approx(16.1e9).epsilon(0.005));
  CHECK(plan["fits"] == true);
}

TEST_CASE("a limit in bytes takes the place of the share of the memory") {
  const json plan = answer({.model = "Qwen-7B", .gpus = "1xH100", .gpu_memory_limit = "20GiB"});
  CHECK(plan["budget_bytes"] == uint64_t{20} << 30);
  CHECK(plan["fits"] == true);
  CHECK(answer({.model = "Qwen-7B", .gpus = "1xH100", .gpu_memory_limit = "10GiB"})["fits"] == false);
}

TEST_CASE("host memory that swapped KV pages take is in the plan") {
  PlanCommandOptions options{.model = "Qwen-7B", .gpus = "2xH100", .host_memory = "64GiB"};
  json plan = answer(options);
  // An eighth of the memory over two ranks.
  for (int rank = 0; rank < 2; ++rank) {
    CHECK(plan["ranks"][rank]["swap_bytes"].get<double>() == Approx(double(uint64_t{4} << 30)).epsilon(0.001));
  }
  CHECK(plan["host_bytes"] == plan["ranks"][0]["swap_bytes"].get<uint64_t>() +
                                  plan["ranks"][1]["swap_bytes"].get<uint64_t>());
  CHECK_THAT(plan_answer(options).text, Catch::Contains("of 64.00 GiB for all ranks"));
  options.swap_space = "0";
  CHECK(answer(options)["host_bytes"] == 0);
  CHECK_THAT(plan_answer(options).text, !Catch::Contains("host memory"));
  // On the CPU it is taken from what the KV cache could have.
  const PlanCommandOptions cpu{.model = "Qwen-7B", .device = "cpu", .host_memory = "64GiB"};
  PlanCommandOptions swapping = cpu;
  swapping.swap_space = "8GiB";
  CHECK(answer(cpu)["budget_bytes"].get<uint64_t>() > answer(swapping)["budget_bytes"].get<uint64_t>());
}

TEST_CASE("bad input is one line that names the flag") {
  const struct {
    PlanCommandOptions options;
    const char* part;
  } cases[] = {
      {{.model = "V9", .gpus = "8xH100"}, "known without files: V2-Lite, V2, V3, R1"},
      {{.model = "V3", .gpus = "8xH900"}, "--gpus 8xH900"},
      {{.model = "V3", .gpus = "0xH100"}, "--gpus 0xH100"},
      {{.model = "V3", .gpus = "H100", .device = "cpu"}, "not with --device cpu"},
      {{.model = "V3", .gpus = "8xH100", .device = "tpu"}, "--device tpu"},
      {{.model = "V3", .gpus = "8xH100", .host_memory = "lots"}, "--host-memory lots"},
      {{.model = "V3", .gpus = "8xH100", .host_memory = "64GiB", .swap_space = "9GiB"}, "--swap-space 9GiB"},
      {{.model = "V3", .gpus = "8xH100", .host_memory = "-1GiB"}, "--host-memory -1GiB"},
      {{.model = "V3", .gpus = "8xH100", .quantization = "int3"}, "--quantization"},
      {{.model = "V3", .gpus = "8xH100", .tensor_parallel_size = 16}, "--tensor-parallel-size 16"},
      {{.model = "Qwen-7B", .gpus = "32xH100"}, "28 attention heads"},
      {{.model = "V3", .gpus = "8xH100", .dtype = "float64"}, "--dtype float64"},
      {{.model = "V3", .gpus = "8xH100", .kv_cache_dtype = "fp4"}, "--kv-cache-dtype fp4"},
      {{.model = "V3", .gpus = "8xH100", .max_model_len = 1 << 20}, "--max-model-len"},
      {{.model = "V3", .gpus = "8xH100", .page_size = 0}, "--block-size 0"},
      {{.model = "V3", .gpus = "8xH100", .expert_offload = "moon"}, "--expert-offload moon"},
      {{.model = "V3", .gpus = "8xH100", .gpu_memory_limit = "0"}, "--gpu-memory-limit 0"},
      {{.model = "V3", .gpus = "8xH100", .gpu_memory_limit = "-24GiB"}, "--gpu-memory-limit -24GiB"},
      {{.model = "V3", .gpus = "8xH100", .gpu_memory_limit = "81GiB"}, "H100 has 79.65 GiB"},
  };
  for (const auto& c : cases) {
    INFO(c.part);
    INVALID(plan_answer(c.options), c.part);
    try {
      plan_answer(c.options);
    } catch (const InvalidInput& error) {
      CHECK(std::string(error.what()).find('\n') == std::string::npos);
    }
  }
}

}  // namespace
}  // namespace shoal
