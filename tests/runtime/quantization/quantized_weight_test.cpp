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

TEST_CASE("schemes that there are not are refused") {
  for (const char* name : {"int5", "int4x", "int4-g64", "int4-g32-asym", "int8-asym", "int8-gptq", "", "-asym"}) {
    INVALID(parse_scheme("--quantization", name), "--quantization \"", "int4, int4-g32");
  }
  INVALID(parse_scheme("--quantization", "int4-gptq"), "run shoal quantize --scheme int4-gptq");
  INVALID(parse_scheme("--scheme", "int5", true), "int4-gptq-asym-g32");
  const QuantizationScheme scheme = parse_scheme("--scheme", "int4-gptq-asym-g32", true);
  CHECK(scheme.calibrated);
  CHECK(scheme.form(64) == WeightForm{DType::kI4x2, 1, 32, true});
  CHECK(scheme.zero() == ZeroPoint::kInteger);
}

TEST_CASE("weights that have no more bits already stay as they are") {
  const std::string data = SHOAL_SOURCE_DIR "/tests/runtime/checkpoint/quantized_data/";
  for (const char* scheme : {"int4", "int4-asym-g32", "int8", "fp8"}) {
    const auto packed = open_checkpoint(data + "int4-g128", scheme);
    CHECK(matrices_kept(*packed) == 0);
    const auto kept = packed->matrix("w", 20, 256);
    const auto stored = Checkpoint::open(data + "int4-g128")->matrix("w", 20, 256);
    CHECK(kept->form() == stored->form());
    CHECK(matrices_kept(*packed) == 1);
  }
  // Eight bits can become four.
  const auto wide = open_checkpoint(data + "int8-g32-asym", "int4");
  CHECK(wide->matrix("w", 18, 64)->form() == WeightForm{DType::kI4x2, 1, 64, false});
  CHECK(matrices_kept(*wide) == 0);
  CHECK(matrices_kept(*Checkpoint::open(data + "int4-g128")) == 0);
}

// Values on a grid of 16 steps, as GGUF's Q4_1 has them: half-precision steps and mins, groups of 32.
TEST_CASE("int4-asym-g32 finds the grid that values lie on already") {
  std::mt19937 random(11);
  std::uniform_real_distribution<float> step(1e-4f, 2e-2f), low(-0.2f, 0.02f);
  std::uniform_int_distribution<int> code(0, 15);
  for (const bool as_bf16 : {false, true}) {
    for (int group = 0; group < 200; ++group) {
      const float scale = to_float(to_f16(step(random))), min = to_float(to_f16(low(random)));
      std::vector<float> values(32);
      float largest = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(i < 2 ? 15 * i : code(random)) * scale + min;
        if (as_bf16) values[i] = to_float(to_bf16(values[i]));
        largest = std::max(largest, std::abs(values[i]));
      }
      const GroupScale found = choose_scale(values, 4, ZeroPoint::kFree);
      std::vector<int8_t> codes(values.size());
      round_to_codes(values, found, 4, codes.data());
      // Twice what rounded the values to what they are.
      const float allowed = largest * (as_bf16 ? 1.0f / 128 : 1e-6f);
      for (size_t i = 0; i < values.size(); ++i) {
        CHECK(std::abs(static_cast<float>(codes[i]) * found.scale + found.min - values[i]) <= allowed);
      }
    }
  }
}

TEST_CASE("what matters more is met better") {
  std::mt19937 random(12);
  std::normal_distribution<float> normal;
  double with = 0, without = 0;
  for (int group = 0; group < 100; ++group) {
    std::vector<float> values(32), importance(32, 0.01f);
    for (float& v : values) v = normal(random);
    for (int i = 0; i < 4; ++i) importance[i] = 10;
    for (const ZeroPoint zero : {ZeroPoint::kNone, ZeroPoint::kInteger, ZeroPoint::kFree}) {
      for (const bool told : {true, false}) {
        const GroupScale scale =
            choose_scale(values, 4, zero, told ? std::span<const float>(importance) : std::span<const float>());
        std::vector<int8_t> codes(values.size());
        round_to_codes(values, scale, 4, codes.data());
        for (size_t i = 0; i < values.size(); ++i) {
          const float error = static_cast<float>(codes[i]) * scale.scale + scale.min - values[i];
          (told ? with : without) += importance[i] * error * error;
        }
      }
    }
  }
  CHECK(with < 0.7 * without);
}

TEST_CASE("scales: zeros, single values and ends of the range") {
  const std::vector<float> zeros(32, 0.0f);
  for (const ZeroPoint zero : {ZeroPoint::kNone, ZeroPoint::kInteger, ZeroPoint::kFree}) {
    CHECK(choose_scale(zeros, 4, zero).scale == 1);
    CHECK(choose_scale(zeros, 4, zero).min == 0);
    const std::vector<float> same(32, 0.5f);
    const GroupScale scale = choose_scale(same, 4, zero);
    std::vector<int8_t> codes(32);
    round_to_codes(same, scale, 4, codes.data());
    CHECK(std::abs(codes[0] * scale.scale + scale.min - 0.5f) < 0.005f);
  }
  // Values of one sign: an asymmetric code uses all 16 steps on them.
  std::vector<float> positive;
  for (int i = 0; i < 16; ++i) positive.push_back(static_cast<float>(i));
  for (const ZeroPoint zero : {ZeroPoint::kInteger, ZeroPoint::kFree}) {
    const GroupScale scale = choose_scale(positive, 4, zero);
    CHECK(scale.scale == 1);
    CHECK(scale.min == 8);
  }
}

}  // namespace
}  // namespace shoal
