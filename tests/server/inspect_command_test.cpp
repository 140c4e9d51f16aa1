#include "server/inspect_command.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/rank_bytes.h"
#include "tests/runtime/checkpoint/expect_invalid.h"

namespace shoal {
namespace {

std::string golden(const std::string& name) {
  return SHOAL_SOURCE_DIR "/tests/golden/data/" + name;
}

TEST_CASE("the report in JSON says what the loader would count") {
  const std::string dir = golden("v3-fp8");
  const auto report = nlohmann::json::parse(
      inspect_report({.model = dir, .tensor_parallel_size = 3, .tensors = true, .json = true}));
  const ModelConfig config = read_model_config(dir);
  const auto opened = Checkpoint::open(dir);
  const Checkpoint& checkpoint = *opened;
  CHECK(report["architecture"] == "DeepseekV3ForCausalLM");
  CHECK(report["stored_bytes"] == checkpoint.total_bytes());
  CHECK(report["unused_bytes"] == 0);
  CHECK(report["tensors"].size() == checkpoint.file_tensors().size());
  REQUIRE(report["ranks"].size() == 3);
  for (int rank = 0; rank < 3; ++rank) {
    const RankBytes bytes = rank_bytes(checkpoint, config, {.ranks = 3, .rank = rank});
    const auto& row = report["ranks"][rank];
    CHECK(row["read_bytes"] == bytes.total(false).read);
    CHECK(row["held_bytes"] == bytes.total(false).held);
    CHECK(row["mtp_read_bytes"] == bytes.of(TensorKind::kMtp).read);
  }
  uint64_t stored = 0;
  for (const auto& kind : report["kinds"]) stored += kind["stored_bytes"].get<uint64_t>();
  CHECK(stored == checkpoint.total_bytes());
}

TEST_CASE("the report for people names architecture, dimensions, kinds and ranks") {
  const std::string text =
      inspect_report({.model = golden("v2-grouped"), .tensor_parallel_size = 2});
  for (const char* part :
       {"DeepseekV2ForCausalLM", "group_limited_greedy, 2 of 4 groups", "routed experts", "rank 1",
        "absorbed MLA", "YaRN scaling by 20 over 64", "held by each of 2 ranks", "in 2 files"}) {
    CHECK_THAT(text, Catch::Contains(part));
  }
  CHECK_THAT(text, !Catch::Contains("model.norm.weight"));
  CHECK_THAT(inspect_report({.model = golden("qwen2"), .tensors = true}),
             Catch::Contains("model.norm.weight"));
}

TEST_CASE("what would be refused at load is refused here") {
  INVALID(inspect_report({.model = "/no/such/folder"}), "no such folder");
  INVALID(inspect_report({.model = golden("v3"), .tensor_parallel_size = 5}), "4 attention heads");
  INVALID(inspect_report({.model = golden("v3"), .tensor_parallel_size = 0}), "1 or more");
}

}  // namespace
}  // namespace shoal
