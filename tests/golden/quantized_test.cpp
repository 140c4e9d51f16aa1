// Golden models quantised while loading, on the CPU and on GPUs: the logits of a quantised model are those of
// a float32 model that has the values its numbers decode to. (tests/runtime/quantization holds the values
// to NumPy, golden_test holds float32 models to Hugging Face.)
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/tensor_plan.h"
#include "runtime/engine/loader.h"
#include "runtime/quantization/decode.h"
#include "runtime/quantization/quantized_weight.h"
#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/support/ranks.h"

namespace shoal {
namespace {

// As for the golden models (README.md): the order of summation alone differs.
constexpr double kTolerance = 1e-4;

// The model `from`, quantised as `scheme` says and decoded, in float32.
void write_decoded(const std::string& from, const std::string& scheme, const test::TempDir& to) {
  const auto checkpoint = open_checkpoint(from, scheme);
  std::vector<test::StoredTensor> tensors;
  int quantised = 0;
  for (const PlannedTensor& tensor : tensor_plan(read_model_config(from))) {
    const auto weight = planned_weight(*checkpoint, tensor);
    const DType dtype = weight->form().dtype;
    quantised += dtype == DType::kI4x2 || dtype == DType::kI8;
    std::vector<float> values(weight->n() * weight->k());
    decode_weight(*weight, {0, weight->n()}, {0, weight->k()}, values.data());
    auto shape = tensor.k > 0 ? std::vector<int64_t>{tensor.n, tensor.k} : std::vector<int64_t>{tensor.n};
    tensors.push_back(test::stored_f32(tensor.name, std::move(shape), values));
  }
  CHECK(quantised > 10);
  to.write("model.safetensors", test::safetensors_file(tensors));
  auto config = nlohmann::json::parse(std::ifstream(from + "/config.json"));
  config.erase("quantization_config");
  to.write("config.json", config.dump());
}

struct Logits {
  std::vector<float> prompt, decode;  // [tokens, vocab], [1, vocab] on rank 0
};

// All tokens but the last in one step, the last as a decode step (recorded, where the device records).
Logits logits_of(const std::string& dir, const std::string& scheme, std::vector<int32_t> tokens) {
  LoadOptions options;
  options.model_dir = dir;
  options.quantization = scheme;
  options.dtype = "float32";
  options.max_num_seqs = 1;
  options.page_size = 8;
  options.max_model_len = options.kv_cache_tokens = 128;
  const auto model = load_model(rank_runtime(), options);
  const int32_t last = tokens.back();
  tokens.pop_back();
  StepPlan plan;
  SequenceSlice& slice = plan.slices.emplace_back();
  for (int32_t i = 0; i < model->num_pages; ++i) slice.pages.push_back(i);
  slice.tokens = tokens;
  slice.sample = slice.all_logits = true;
  const auto copy = [&] {
    const std::span<const float> logits = model->runner->run(plan);
    return std::vector<float>(logits.begin(), logits.end());
  };
  Logits logits{copy(), {}};
  slice.first_position = static_cast<int32_t>(tokens.size());
  slice.tokens = {last};
  slice.absorbed = true;
  slice.all_logits = false;
  logits.decode = copy();
  return logits;
}

void check_close(const std::vector<float>& a, const std::vector<float>& b, double max_abs_logit) {
  CHECK(a.size() == b.size());
  if (a.size() != b.size() || rank_runtime().rank() != 0) return;
  CHECK_FALSE(a.empty());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(double{a[i]} - double{b[i]});
    if (!(difference <= largest)) largest = difference;  // a NaN stays
  }
  CHECK(largest <= kTolerance * max_abs_logit);
}

TEST_CASE("a quantised golden model has the logits of the values it decodes to") {
  // Mixtures with MLA and with groups cut short (64 and 8-bit rows of 12), a dense model with biases.
  for (const auto& [name, scheme] : std::vector<std::pair<std::string, std::string>>{
           {"v3", "int4"}, {"v3", "int4-asym-g32"}, {"v3-fp8", "int8"}, {"qwen2", "int4-asym"},
           {"qwen2", "int8-g128"}}) {
    const std::string dir = SHOAL_SOURCE_DIR "/tests/golden/data/" + name;
    INFO(name << " as " << scheme << ", " << rank_runtime().size() << " ranks");
    const auto golden = nlohmann::json::parse(std::ifstream(dir + "/golden.json"));
    const auto tokens = golden["prompts"][2].get<std::vector<int32_t>>();
    const test::TempDir decoded;  // each rank its own
    write_decoded(dir, scheme, decoded);
    const Logits expected = logits_of(decoded.path(), "none", tokens);
    const Logits logits = logits_of(dir, scheme, tokens);
    check_close(logits.prompt, expected.prompt, golden["max_abs_logit"].get<double>());
    check_close(logits.decode, expected.decode, golden["max_abs_logit"].get<double>());
  }
}

}  // namespace
}  // namespace shoal
