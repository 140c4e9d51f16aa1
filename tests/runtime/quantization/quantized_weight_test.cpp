// Quantising while loading: shards have the numbers of the whole, and errors are what rounding allows.
#include "runtime/quantization/quantized_weight.h"

#include "runtime/quantization/decode.h"
#include "runtime/quantization/rounding.h"
#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/runtime/quantization/stored_bytes.h"

namespace shoal {
namespace {

std::vector<float> normal_values(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.05f);
  std::vector<float> values(count);
  for (float& v : values) v = to_float(to_bf16(normal(random)));
  return values;
}

struct Model {
  explicit Model(int64_t n, int64_t k) : n(n), k(k), values(normal_values(n * k, 1)) {
    dir.write("model.safetensors",
              test::safetensors_file({test::stored_bf16("model.layers.0.mlp.up_proj.weight", {n, k}, values),
                                      test::stored_bf16("lm_head.weight", {n, k}, values),
                                      test::stored_bf16("model.layers.0.mlp.gate.weight", {n, k}, values)}));
  }
  std::unique_ptr<Checkpoint> open(const std::string& scheme) const {
    return open_checkpoint(dir.path(), scheme);
  }
  test::TempDir dir;
  int64_t n, k;
  std::vector<float> values;
};

const char* kUp = "model.layers.0.mlp.up_proj";

TEST_CASE("what each scheme holds, and how far off it is") {
  const Model model(130, 256);
  struct Row {
    const char* scheme;
    WeightForm form;
    double steps;  // of rounding, in parts of the largest value of a group
  };
  for (const Row& row : {Row{"int4", {DType::kI4x2, 1, 128, false}, 1.0 / 7},
                         Row{"int4-g32", {DType::kI4x2, 1, 32, false}, 1.0 / 7},
                         Row{"int4-asym", {DType::kI4x2, 1, 128, true}, 2.0 / 15},
                         Row{"int4-asym-g32", {DType::kI4x2, 1, 32, true}, 2.0 / 15},
                         Row{"int8", {DType::kI8, 1, 256, false}, 1.0 / 127},
                         Row{"int8-g128", {DType::kI8, 1, 128, false}, 1.0 / 127},
                         Row{"fp8", {DType::kF8E4M3, 128, 128, false}, 1.0 / 16}}) {
    INFO(row.scheme);
    const auto checkpoint = model.open(row.scheme);
    const auto weight = checkpoint->matrix(kUp, model.n, model.k);
    CHECK(weight->form() == row.form);
    std::vector<float> decoded(model.n * model.k);
    decode_weight(*weight, {0, model.n}, {0, model.k}, decoded.data());
    double error = 0, power = 0;
    for (size_t i = 0; i < decoded.size(); ++i) {
      error += std::pow(decoded[i] - model.values[i], 2);
      power += std::pow(model.values[i], 2);
    }
    // Normal values reach some 4 deviations in a group: a uniform step has an error of step / sqrt(12).
    CHECK(std::sqrt(error / power) < 4 * row.steps / std::sqrt(12));
    CHECK(error > 0);
    CHECK(checkpoint->matrix("lm_head", model.n, model.k)->form().dtype == DType::kBF16);
    CHECK(checkpoint->matrix("model.layers.0.mlp.gate", model.n, model.k)->form().dtype == DType::kBF16);
    CHECK(checkpoint->names() == model.open("none")->names());
  }
}

TEST_CASE("a slice has the numbers of the whole, wherever it is cut") {
  const Model model(300, 320);
  for (const char* scheme :
       {"int4", "int4-g32", "int4-asym", "int8", "int8-g128", "fp8"}) {
    const auto checkpoint = model.open(scheme);
    const auto weight = checkpoint->matrix(kUp, model.n, model.k);
    std::vector<float> whole(model.n * model.k);
    decode_weight(*weight, {0, model.n}, {0, model.k}, whole.data());
    for (const Range rows : {Range{0, 300}, Range{5, 9}, Range{100, 200}, Range{127, 257}}) {
      for (const Range cols : {Range{0, 320}, Range{2, 6}, Range{30, 200}, Range{128, 256}}) {
        INFO(scheme << " rows " << rows.begin << " to " << rows.end << ", columns " << cols.begin
                    << " to " << cols.end);
        std::vector<float> part(rows.size() * cols.size()), want;
        decode_weight(*weight, rows, cols, part.data());
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          want.insert(want.end(), whole.begin() + i * model.k + cols.begin,
                      whole.begin() + i * model.k + cols.end);
        }
        CHECK(part == want);
      }
    }
  }
}

TEST_CASE("groups that do not divide a row become smaller, or the matrix stays") {
  CHECK(parse_scheme("-q", "int4").form(10944)->block_cols == 64);
  CHECK(parse_scheme("-q", "int4").form(96)->block_cols == 32);
  CHECK(parse_scheme("-q", "int4-g32").form(48)->block_cols == 16);
  CHECK_FALSE(parse_scheme("-q", "int4").form(100).has_value());
  CHECK(parse_scheme("-q", "int8").form(100)->block_cols == 100);
  const Model model(4, 100);
  CHECK(model.open("int4")->matrix(kUp, 4, 100)->form().dtype == DType::kBF16);
}

TEST_CASE("schemes that there are not, and weights that are integers already, are refused") {
  INVALID(parse_scheme("--quantization", "int5"), "--quantization \"int5\"", "int4, int4-g32");
  INVALID(parse_scheme("--quantization", "int4-gptq"), "shoal quantize");
  CHECK(parse_scheme("--scheme", "int4-gptq", true).calibrated);
  const auto packed = open_checkpoint(
      SHOAL_SOURCE_DIR "/tests/runtime/checkpoint/quantized_data/int4-g128", "int4");
  INVALID(packed->matrix("w", 20, 256), "--quantization int4", "\"w.weight_packed\"", "already");
}

TEST_CASE("scales: zeros, single values and ends of the range") {
  const std::vector<float> zeros(32, 0.0f);
  CHECK(choose_scale(zeros, 4, true).scale == 1);
  CHECK(choose_scale(zeros, 4, false).zero == 0);
  for (const bool symmetric : {true, false}) {
    const std::vector<float> same(32, 0.5f);
    const GroupScale scale = choose_scale(same, 4, symmetric);
    std::vector<int8_t> codes(32);
    round_to_codes(same, scale, 4, codes.data());
    CHECK(std::abs((codes[0] - scale.zero) * scale.scale - 0.5f) < 0.005f);
  }
  // Values of one sign: an asymmetric code uses all 16 steps on them.
  std::vector<float> positive;
  for (int i = 0; i < 16; ++i) positive.push_back(static_cast<float>(i));
  const GroupScale scale = choose_scale(positive, 4, false);
  CHECK(scale.scale == 1);
  CHECK(scale.zero == -8);
}

}  // namespace
}  // namespace shoal
