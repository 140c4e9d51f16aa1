// Values: the gguf package's bit for bit, as F32 and as Weights; rectangles; what the converter did
// to rows undone; scales that are not finite.
#include "runtime/checkpoint/gguf_weight.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <iterator>

#include "runtime/checkpoint/gguf_blocks.h"
#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"

namespace shoal {
namespace {

using test::TempDir;

const GgmlType& type_named(const std::string& name) {
  for (uint32_t id = 0; id < 64; ++id) {
    const GgmlType* type = find_ggml_type(id);
    if (type != nullptr && type->name == name) return *type;
  }
  FAIL(name);
  throw;
}

struct Golden {
  std::string blocks;
  std::vector<float> values;
  int64_t count = 0;  // of blocks
};

Golden read_golden(const GgmlType& type) {
  std::ifstream file(
      fmt::format("{}/tests/runtime/checkpoint/gguf_data/{}.bin", SHOAL_SOURCE_DIR, type.name),
      std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  Golden golden;
  golden.count = static_cast<int64_t>(bytes.size()) / (type.block_bytes + 4 * type.block);
  REQUIRE(golden.count > 0);
  golden.blocks = bytes.substr(0, golden.count * type.block_bytes);
  golden.values.resize(golden.count * type.block);
  std::memcpy(golden.values.data(), bytes.data() + golden.blocks.size(), 4 * golden.values.size());
  return golden;
}

const std::vector<std::string> kQuantised = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",  "Q2_K",
                                             "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"};

// A file of blocks, and rows of it.
struct Stored {
  Stored(const GgmlType& type, const std::string& blocks, int64_t n) {
    dir.write("x.gguf", blocks);
    file = InputFile::open(dir.path("x.gguf"));
    const auto count = static_cast<int64_t>(blocks.size()) / type.block_bytes;
    rows = {.name = "t", .file = file.get(), .type = &type, .n = n, .k = count / n * type.block};
  }
  TempDir dir;
  std::unique_ptr<InputFile> file;
  GgufRows rows;
};

bool same_bits(float a, float b) { return std::memcmp(&a, &b, 4) == 0; }

// value(i, j) of a rectangle of a stored weight, as the comment of Weight says.
std::vector<float> values_of(const StoredWeight& weight, Range rows, Range cols) {
  const WeightForm form = weight.form();
  if (form.dtype == DType::kF32) {
    std::vector<float> values(rows.size() * cols.size());
    weight.read(rows, cols, reinterpret_cast<std::byte*>(values.data()), nullptr, nullptr);
    return values;
  }
  const bool packed = form.dtype == DType::kI4x2;
  const int64_t width = packed ? cols.size() / 2 : cols.size();
  const int64_t groups = blocks_touched(cols, form.block_cols).size();
  std::vector<int8_t> numbers(rows.size() * width);
  std::vector<float> scale(rows.size() * groups), min(form.has_min ? scale.size() : 0);
  weight.read(rows, cols, reinterpret_cast<std::byte*>(numbers.data()), scale.data(),
              form.has_min ? min.data() : nullptr);
  std::vector<float> values;
  for (int64_t i = 0; i < rows.size(); ++i) {
    for (int64_t j = 0; j < cols.size(); ++j) {
      int number = numbers[i * width + (packed ? j / 2 : j)];
      if (packed) number = static_cast<int8_t>(j % 2 == 0 ? number << 4 : number) >> 4;
      const int64_t group = i * groups + (j + cols.begin % form.block_cols) / form.block_cols;
      const float product = static_cast<float>(number) * scale[group];
      values.push_back(form.has_min ? product + min[group] : product);
    }
  }
  return values;
}

TEST_CASE("GGUF blocks dequantise to the bits of the gguf package") {
  std::vector<std::string> names = kQuantised;
  names.insert(names.end(), {"F16", "BF16"});
  for (const std::string& name : names) {
    const GgmlType& type = type_named(name);
    const Golden golden = read_golden(type);
    std::vector<float> values(golden.values.size());
    dequantize(type, reinterpret_cast<const std::byte*>(golden.blocks.data()), golden.count,
               values.data());
    INFO(name);
    CHECK(std::equal(values.begin(), values.end(), golden.values.begin(), same_bits));
  }
}

TEST_CASE("GGUF weights say the same values") {
  for (const std::string& name : kQuantised) {
    const GgmlType& type = type_named(name);
    const Golden golden = read_golden(type);
    const Stored stored(type, golden.blocks, 2);
    const auto weight = make_gguf_weight(stored.rows);
    CHECK(weight->form() == ggml_form(type));
    const Range all_rows{0, 2}, all_cols{0, stored.rows.k};
    const auto values = values_of(*weight, all_rows, all_cols);
    INFO(name);
    REQUIRE(values.size() == golden.values.size());
    // Q4_1 and Q4_K: min + 8 * scale was rounded, to half of its last bit; |min| + 15 |scale|
    // bounds it.
    const bool shifted = name == "Q4_1" || name == "Q4_K";
    float largest = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      if (i % 32 == 0) {
        largest = 0;
        for (size_t j = i; j < i + 32; ++j)
          largest = std::max(largest, std::fabs(golden.values[j]));
      }
      if (!shifted) {
        // A zero may lose its sign when a min of 0 is added.
        REQUIRE(values[i] == golden.values[i]);
      } else {
        REQUIRE(std::fabs(values[i] - golden.values[i]) <= std::ldexp(largest, -23));
      }
    }
    CHECK(weight->stored_bytes(all_rows, all_cols) == golden.blocks.size());
    const auto as_f32 = values_of(*make_gguf_f32(stored.rows), all_rows, all_cols);
    CHECK(std::equal(as_f32.begin(), as_f32.end(), golden.values.begin(), same_bits));
  }
}

TEST_CASE("rectangles of GGUF weights are those of the whole") {
  for (const std::string& name : kQuantised) {
    const GgmlType& type = type_named(name);
    const Golden golden = read_golden(type);
    const Stored stored(type, golden.blocks, 2);
    const auto weight = make_gguf_weight(stored.rows);
    const auto dense = make_gguf_f32(stored.rows);
    const int64_t k = stored.rows.k;
    const auto whole = values_of(*weight, {0, 2}, {0, k});
    for (const Range rows : {Range{0, 1}, Range{1, 2}, Range{0, 2}}) {
      for (const Range cols :
           {Range{0, 32}, Range{2, 4}, Range{30, 66}, Range{k - 40, k}, Range{16, k}}) {
        INFO(name << " rows " << rows.begin << ", columns " << cols.begin << " to " << cols.end);
        const auto part = values_of(*weight, rows, cols), part_f32 = values_of(*dense, rows, cols);
        REQUIRE(part.size() == static_cast<size_t>(rows.size() * cols.size()));
        for (int64_t i = 0; i < rows.size(); ++i) {
          for (int64_t j = 0; j < cols.size(); ++j) {
            const int64_t at = (rows.begin + i) * k + cols.begin + j;
            REQUIRE(part[i * cols.size() + j] == whole[at]);
            REQUIRE(same_bits(part_f32[i * cols.size() + j], golden.values[at]));
          }
        }
      }
    }
    CHECK(weight->stored_bytes({0, 1}, {0, 1}) == static_cast<uint64_t>(type.block_bytes));
    CHECK(weight->stored_bytes({0, 2}, {0, 0}) == 0);
  }
}

std::string f32_bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * 4};
}

TEST_CASE("llama's q and k get their halves back") {
  // Two heads of six rows: the file has rows 0 and 3 of a head first, then 1 and 4, then 2 and 5.
  const Stored stored(type_named("F32"), f32_bytes({0, 3, 1, 4, 2, 5, 10, 13, 11, 14, 12, 15}), 12);
  GgufRows rows = stored.rows;
  rows.permuted_half = 3;
  const auto weight = make_gguf_weight(rows);
  CHECK(values_of(*weight, {0, 12}, {0, 1}) ==
        std::vector<float>{0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15});
  CHECK(values_of(*weight, {4, 8}, {0, 1}) == std::vector<float>{4, 5, 10, 11});
}

TEST_CASE("kv_b_proj from its two parts") {
  // Two heads, kv_lora 3, nope 2, v 1: k_b [2 * 3, 2] transposed per head, v_b [2 * 1, 3].
  const Stored k_b(type_named("F32"), f32_bytes({1, 4, 2, 5, 3, 6, 11, 14, 12, 15, 13, 16}), 6);
  const Stored v_b(type_named("F32"), f32_bytes({7, 8, 9, 17, 18, 19}), 2);
  const auto weight = make_gguf_kv_b(k_b.rows, v_b.rows, 2);
  CHECK(weight->n() == 6);
  CHECK(weight->k() == 3);
  const auto whole = values_of(*weight, {0, 6}, {0, 3});
  CHECK(whole == std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19});
  CHECK(values_of(*weight, {1, 5}, {1, 3}) == std::vector<float>{5, 6, 8, 9, 12, 13, 15, 16});
  CHECK(weight->stored_bytes({0, 6}, {0, 3}) == 4 * 18);
  CHECK(weight->stored_bytes({2, 3}, {0, 3}) == 4 * 3);
}

TEST_CASE("GGUF scales that are not finite are refused") {
  for (const std::string& name : kQuantised) {
    const GgmlType& type = type_named(name);
    const Golden golden = read_golden(type);
    const WeightForm form = ggml_form(type);
    const std::vector<std::string> ends = {"Q2_K", "Q3_K", "Q6_K"};
    const bool at_end = std::find(ends.begin(), ends.end(), name) != ends.end();
    const int64_t halves = form.has_min ? 2 : 1;
    for (int64_t h = 0; h < halves; ++h) {
      for (const uint16_t bits : {0x7c00, 0xfc00, 0x7e00}) {  // inf, -inf, NaN
        std::string blocks = golden.blocks;
        const int64_t at = at_end ? type.block_bytes - 2 * (halves - h) : 2 * h;
        std::memcpy(blocks.data() + type.block_bytes + at, &bits, 2);  // of the second block
        const Stored stored(type, blocks, 1);
        INFO(name << " " << h << " " << bits);
        CHECK_NOTHROW(values_of(*make_gguf_weight(stored.rows), {0, 1}, {0, type.block}));
        INVALID(values_of(*make_gguf_weight(stored.rows), {0, 1}, {0, 2 * type.block}),
                "x.gguf: tensor \"t\"", "not finite");
        INVALID(values_of(*make_gguf_f32(stored.rows), {0, 1}, {0, 2 * type.block}), "not finite");
      }
    }
  }
}

TEST_CASE("a GGUF file that shrank is refused, not a signal") {
  const GgmlType& type = type_named("Q8_0");
  Stored stored(type, std::string(34 * 8, '\0'), 4);
  const auto weight = make_gguf_weight(stored.rows);
  CHECK_NOTHROW(values_of(*weight, {0, 4}, {0, 64}));
  std::filesystem::resize_file(stored.dir.path("x.gguf"), 100);
  INVALID(values_of(*weight, {0, 4}, {0, 64}), "x.gguf", "shrank");
}

}  // namespace
}  // namespace shoal
