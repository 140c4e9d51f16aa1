// --load-format dummy: a model of the right shapes and kinds, the same whoever asks for which part
// of it.
#include "runtime/quantization/dummy_checkpoint.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "runtime/checkpoint/tensor_plan.h"
#include "runtime/quantization/decode.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;

const std::string kModels = SHOAL_SOURCE_DIR "/tests/golden/data/";

struct Rectangle {
  std::vector<std::byte> numbers;
  std::vector<float> scale, min;
};

Rectangle read(const StoredWeight& weight, Range rows, Range cols) {
  const WeightForm form = weight.form();
  Rectangle r;
  r.numbers.resize(static_cast<size_t>(rows.size()) * form.row_bytes(cols.size()));
  if (has_scales(form.dtype)) {
    r.scale.resize(blocks_touched(rows, form.block_rows).size() *
                   blocks_touched(cols, form.block_cols).size());
    if (form.has_min) r.min.resize(r.scale.size());
  }
  weight.read(rows, cols, r.numbers.data(), r.scale.data(), form.has_min ? r.min.data() : nullptr);
  return r;
}

TEST_CASE("any part of a made-up tensor is that part of the whole") {
  const auto [model, scheme, dtype] = GENERATE(table<std::string, std::string, DType>({
      {"v3", "none", DType::kBF16},
      {"v3", "int4", DType::kI4x2},
      {"v3", "int4-asym", DType::kI4x2},
      {"v3", "int8", DType::kI8},
      {"v3", "fp8", DType::kF8E4M3},
      {"v3-fp8", "none", DType::kF8E4M3},
  }));
  CAPTURE(model, scheme);
  const auto checkpoint = open_dummy_checkpoint(kModels + model, scheme);
  const ModelConfig config = read_model_config(kModels + model);
  const std::string name = "model.layers.1.self_attn.o_proj";
  const int64_t n = config.hidden_size, k = config.num_attention_heads * config.v_head_dim;
  const auto weight = checkpoint->matrix(name, n, k);
  const WeightForm form = weight->form();
  REQUIRE(form.dtype == dtype);
  const Rectangle whole = read(*weight, {0, n}, {0, k});
  const Range rows{3, n - 2}, cols{k / 2 + 2, k - 2};
  const Rectangle part = read(*weight, rows, cols);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const std::byte* all =
        whole.numbers.data() + row * form.row_bytes(k) + form.row_bytes(cols.begin);
    const std::byte* some = part.numbers.data() + (row - rows.begin) * form.row_bytes(cols.size());
    REQUIRE(std::memcmp(all, some, form.row_bytes(cols.size())) == 0);
    if (!has_scales(form.dtype)) continue;
    const int64_t of_whole = blocks_touched({0, k}, form.block_cols).size();
    const Range blocks = blocks_touched(cols, form.block_cols);
    const int64_t block_row = row / form.block_rows;
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
      const int64_t in_part =
          (block_row - rows.begin / form.block_rows) * blocks.size() + b - blocks.begin;
      REQUIRE(part.scale[in_part] == whole.scale[block_row * of_whole + b]);
      if (form.has_min) REQUIRE(part.min[in_part] == whole.min[block_row * of_whole + b]);
    }
  }

  // Products keep the size of what they multiply.
  std::vector<float> values(n * k);
  decode_weight(*weight, {0, n}, {0, k}, values.data());
  double squares = 0;
  for (const float value : values) squares += double{value} * value;
  CHECK(squares / static_cast<double>(n) == Approx(1).epsilon(0.35));

  const Rectangle again =
      read(*open_dummy_checkpoint(kModels + model, scheme)->matrix(name, n, k), {0, n}, {0, k});
  CHECK((again.numbers == whole.numbers && again.scale == whole.scale));
  const Rectangle other =
      read(*checkpoint->matrix("model.layers.2.self_attn.o_proj", n, k), {0, n}, {0, k});
  CHECK(other.numbers != whole.numbers);
}

TEST_CASE("a made-up checkpoint has what its config asks for, and nothing else") {
  for (const char* model : {"v3", "v2-lite", "qwen2", "qwen2-tied", "llama3"}) {
    CAPTURE(model);
    const auto checkpoint = open_checkpoint_as("dummy", kModels + model, "none");
    const ModelConfig config = read_model_config(kModels + model);
    check_all_known(*checkpoint, config);
    uint64_t bytes = 0;
    for (const PlannedTensor& tensor : tensor_plan(config)) {
      const auto weight = planned_weight(*checkpoint, tensor);
      bytes += weight->stored_bytes({0, weight->n()}, {0, weight->k()});
    }
    CHECK(bytes == checkpoint->total_bytes());
    CHECK(checkpoint->file_tensors().size() == checkpoint->names().size());
  }
}

TEST_CASE("what cannot be made up is refused") {
  CHECK_THROWS_WITH(open_checkpoint_as("pt", kModels + "v3", "none"), Contains("--load-format pt"));
  CHECK_THROWS_WITH(open_dummy_checkpoint(kModels + "v3", "int3"), Contains("int3"));
  CHECK_THROWS_WITH(open_dummy_checkpoint(SHOAL_SOURCE_DIR "/docs", "none"),
                    Contains("config.json"));
  const auto checkpoint = open_dummy_checkpoint(kModels + "v3", "none");
  CHECK_THROWS_AS(checkpoint->matrix("lm_head", 1, 2), InvalidInput);
  CHECK_THROWS_AS(checkpoint->vector("no.such", 1), InvalidInput);
}

}  // namespace
}  // namespace shoal
