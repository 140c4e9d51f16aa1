// shoal_make_model: a checkpoint of a published model's true shape with made-up weights.
//   shoal_make_model --shape V2-Lite --scheme int4 --tokenizer tokenizer.json --out DIR
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "runtime/memory/known_models.h"
#include "tests/bench/model_maker.h"
#include "tests/bench/run_main.h"

namespace shoal::bench {
namespace {

int run(int argc, char** argv) {
  CLI::App app("Writes a checkpoint of a published model's shape with made-up weights");
  MakeModelOptions options;
  std::string shape;
  int layers = 0;
  app.add_option("--shape", shape, "V2-Lite, V3, R1-Distill-Qwen-7B, ...")->required();
  app.add_option("--scheme", options.scheme, "bf16, int4, int8 or fp8")->capture_default_str();
  app.add_option("--layers", layers, "so many layers only")->check(CLI::PositiveNumber);
  app.add_option("--out", options.out, "folder")->required();
  app.add_option("--tokenizer", options.tokenizer, "tokenizer.json to put beside");
  app.add_option("--seed", options.seed, "of the weights")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const KnownModel* model = find_known_model(shape);
  if (model == nullptr) throw_invalid("--shape {}: no published model is called so (shoal plan names them)", shape);
  nlohmann::json config = nlohmann::json::parse(model->config);
  if (layers > 0) config["num_hidden_layers"] = layers;
  options.config = config.dump();
  const auto start = std::chrono::steady_clock::now();
  int last = -1;
  make_model(options, [&](uint64_t done, uint64_t all) {
    const int percent = static_cast<int>(100 * done / all);
    if (percent == last) return;
    last = percent;
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    fmt::print(stderr, "\r{:3} % of {:.2f} GB, {:.0f} MB/s", percent, all / 1e9,
               done / 1e6 / std::max(seconds, 1e-3));
  });
  fmt::print(stderr, "\n");
  return 0;
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
  return shoal::bench::run_main("shoal_make_model", argc, argv, shoal::bench::run);
}
