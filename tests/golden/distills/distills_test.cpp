// The six R1 distills at their true width in INT4 against Hugging Face transformers, on 1 to 4 ranks. What
// the small golden models cannot show: products of the true sizes, heads that do not divide by the ranks,
// and INT4 groups cut over ranks. CPU only: an emulated GPU would take minutes for each.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/engine/model_runner.h"
#include "tests/golden/distills/formula_weights.h"
#include "tests/support/npy.h"
#include "tests/support/ranks.h"

namespace shoal {
namespace {

using nlohmann::json;

// As for the small golden models (../README.md): the stored values are exact in float32 on both sides, so
// that the order of summation alone differs.
constexpr double kTolerance = 1e-4;
constexpr int32_t kPageSize = 16, kPages = 3;

json read_json(const std::string& path) {
  return json::parse(std::ifstream(std::string(SHOAL_SOURCE_DIR) + "/tests/" + path));
}

void check_distill(const std::string& name) {
  INFO(name << ", " << rank_runtime().size() << " ranks");
  const json golden = read_json("golden/distills/data/" + name + ".json");
  const auto prompt = golden["prompt"].get<std::vector<int32_t>>();
  const auto greedy = golden["greedy"].get<std::vector<int32_t>>();
  json config_json = read_json("runtime/checkpoint/configs/" + name + ".json");
  for (const char* key : {"num_hidden_layers", "vocab_size"}) config_json[key] = golden[key];
  config_json.erase("bos_token_id");  // outside the small vocabulary
  config_json.erase("eos_token_id");
  const ModelConfig config = parse_model_config(config_json.dump(), name);

  RankRuntime& rank = rank_runtime();
  const ParallelLayout layout{rank.rank(), rank.size(), false};
  ExecContext ctx = rank.exec(DType::kF32);
  FormulaWeights weights(rank.device());
  const auto model =
      make_model(config, layout, {DType::kF32, kPages * kPageSize, false}, weights, ctx);
  ModelRunner runner(rank, *model, layout, DType::kF32, DType::kF32, kPageSize, kPages);

  const auto run = [&](int32_t position, std::vector<int32_t> tokens, bool absorbed) {
    StepPlan plan;
    plan.slices.push_back({.first_position = position,
                           .tokens = std::move(tokens),
                           .pages = {2, 0, 1},
                           .absorbed = absorbed,
                           .sample = true,
                           .all_logits = !absorbed});
    return runner.run(plan);
  };
  std::span<const float> logits = run(0, prompt, false);
  if (rank.rank() == 0) {
    const NpyArray expected = read_npy(
        std::string(SHOAL_SOURCE_DIR) + "/tests/golden/distills/data/" + name + ".npy");
    CHECK(logits.size() == expected.values.size());
    double largest = 0;
    for (size_t i = 0; i < std::min(logits.size(), expected.values.size()); ++i) {
      const double difference = std::fabs(double{logits[i]} - double{expected.values[i]});
      if (!(difference <= largest)) largest = difference;  // a NaN stays
    }
    CHECK(largest <= kTolerance * golden["max_abs_logit"].get<double>());
  }
  // The golden tokens are fed whatever was chosen, so that ranks stay together after a mistake.
  const auto vocab = static_cast<size_t>(config.vocab_size);
  auto position = static_cast<int32_t>(prompt.size());
  for (const int32_t token : greedy) {
    if (rank.rank() == 0) {
      const auto last = logits.last(vocab);
      CHECK(std::max_element(last.begin(), last.end()) - last.begin() == token);
    }
    logits = run(position++, {token}, true);
  }
}

TEST_CASE("R1-Distill-Qwen-1.5B in INT4") { check_distill("r1-distill-qwen-1.5b"); }
TEST_CASE("R1-Distill-Qwen-7B in INT4") { check_distill("r1-distill-qwen-7b"); }
TEST_CASE("R1-Distill-Qwen-14B in INT4") { check_distill("r1-distill-qwen-14b"); }
TEST_CASE("R1-Distill-Qwen-32B in INT4") { check_distill("r1-distill-qwen-32b"); }
TEST_CASE("R1-Distill-Llama-8B in INT4") { check_distill("r1-distill-llama-8b"); }
TEST_CASE("R1-Distill-Llama-70B in INT4") { check_distill("r1-distill-llama-70b"); }

}  // namespace
}  // namespace shoal
