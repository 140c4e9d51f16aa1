// Golden GGUF files (gguf_generate.py) through the engine: logits within 1e-4 of the largest of
// Hugging Face's for the same values, alone and with heads and experts over ranks.
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/runtime/checkpoint/gguf_sequence.h"
#include "tests/support/npy.h"

namespace shoal {
namespace {

constexpr double kTolerance = 1e-4;  // tests/golden/README.md, "Tolerances"

TEST_CASE("golden logits of GGUF files") {
  for (const std::string name : {"llama3", "qwen2-tied", "v2-lite", "v3-negative-bias"}) {
    const std::string data = std::string(SHOAL_SOURCE_DIR) + "/tests/runtime/checkpoint/gguf_data/";
    const std::string golden = std::string(SHOAL_SOURCE_DIR) + "/tests/golden/data/" + name;
    const auto json = nlohmann::json::parse(std::ifstream(golden + "/golden.json"));
    const auto model = test::load_gguf(data + name + ".gguf", "float32", 128);
    const bool quantised = std::filesystem::exists(data + name + ".logits_1.npy");
    // Of a quantised file, the logits of its own values; of the others, those of the checkpoint.
    for (const int prompt : quantised ? std::vector<int>{1} : std::vector<int>{0, 1, 2}) {
      const NpyArray expected =
          read_npy(quantised ? data + name + ".logits_1.npy"
                             : fmt::format("{}/logits_{}.npy", golden, prompt));
      const auto logits = test::Sequence(*model).run(
          json["prompts"][prompt].get<std::vector<int32_t>>(), /*all_logits=*/true);
      if (rank_runtime().rank() != 0) continue;
      INFO(name << ", prompt " << prompt << ", " << rank_runtime().size() << " ranks");
      CHECK(logits.size() == expected.values.size());
      double difference = 0, largest = 0;
      for (size_t i = 0; i < std::min(logits.size(), expected.values.size()); ++i) {
        const double d = std::fabs(double{logits[i]} - double{expected.values[i]});
        if (!(d <= difference)) difference = d;
        largest = std::max(largest, std::fabs(double{expected.values[i]}));
      }
      CHECK(difference <= kTolerance * largest);
    }
  }
}

}  // namespace
}  // namespace shoal
