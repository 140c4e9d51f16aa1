// Slices of stored tensors against the whole tensor, for every stored type, on both kinds of
// device.
#include "runtime/checkpoint/checkpoint_source.h"

#include <limits>

#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/runtime/checkpoint/test_devices.h"

namespace shoal {
namespace {

using test::bytes_of;
using test::small_integers;
using test::StoredTensor;
using test::TempDir;

// A folder with one file, opened, and a source over it.
class Fixture {
 public:
  // `config`: config.json, or empty.
  Fixture(const std::vector<StoredTensor>& tensors, const std::string& config, DType dtype,
          Device& device)
      : device_(device) {
    if (!config.empty()) dir_.write("config.json", config);
    dir_.write("model.safetensors", test::safetensors_file(tensors));
    checkpoint_ = Checkpoint::open(dir_.path());
    source = std::make_unique<CheckpointSource>(*checkpoint_, device, dtype,
                                                [this](uint64_t bytes) { progress = bytes; });
  }

  // All values of a view, as float.
  std::vector<float> values(const Tensor& view) const {
    std::vector<std::byte> bytes(view.num_bytes());
    if (!bytes.empty()) device_.copy_to_host(bytes.data(), view.data, bytes.size());
    std::vector<float> out;
    for (int64_t i = 0; i < view.num_elements(); ++i) {
      const std::byte* at = bytes.data() + i * dtype_size(view.dtype);
      switch (view.dtype) {
        case DType::kF32:
          out.push_back(*reinterpret_cast<const float*>(at));
          break;
        case DType::kF16:
          out.push_back(to_float(*reinterpret_cast<const F16*>(at)));
          break;
        case DType::kBF16:
          out.push_back(to_float(*reinterpret_cast<const BF16*>(at)));
          break;
        case DType::kF8E4M3:
          out.push_back(to_float(*reinterpret_cast<const F8E4M3*>(at)));
          break;
        default:
          FAIL("type");
      }
    }
    return out;
  }

  const TempDir& dir() const { return dir_; }
  uint64_t progress = 0;
  std::unique_ptr<CheckpointSource> source;

 private:
  TempDir dir_;
  Device& device_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

std::vector<float> slice_of(const std::vector<float>& whole, int64_t k, Range rows, Range cols) {
  std::vector<float> out;
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    for (int64_t j = cols.begin; j < cols.end; ++j) out.push_back(whole[i * k + j]);
  }
  return out;
}

const std::vector<std::pair<Range, Range>> kSlices = {
    {{0, 37}, {0, 53}}, {{5, 9}, {0, 53}}, {{0, 37}, {3, 20}}, {{36, 37}, {52, 53}},
    {{4, 4}, {0, 53}},  {{0, 37}, {7, 7}}, {{11, 30}, {1, 52}}};

TEST_CASE("slices of matrices of each stored type, exact bytes read and held") {
  const int64_t n = 37, k = 53;
  const std::vector<float> whole = small_integers(n * k, 3);
  const std::vector<StoredTensor> tensors = {test::stored_f32("f32.weight", {n, k}, whole),
                                             test::stored_bf16("bf16.weight", {n, k}, whole),
                                             test::stored_f16("f16.weight", {n, k}, whole)};
  test::HostDevice host;
  test::RemoteDevice remote;
  for (Device* device : std::initializer_list<Device*>{&host, &remote}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Fixture fixture(tensors, {}, dtype, *device);
      CheckpointSource& source = *fixture.source;
      uint64_t read = 0, held = 0;
      for (const auto& [rows, cols] : kSlices) {
        const auto check = [&](const std::string& name, DType expected, int64_t stored_bytes) {
          const Weight w = source.matrix(name, n, k, rows, cols);
          CHECK(w.data.dtype == expected);
          CHECK(w.n() == rows.size());
          CHECK(w.k() == cols.size());
          CHECK(w.scale.rank == 0);
          CHECK(fixture.values(w.data) == slice_of(whole, k, rows, cols));
          CHECK(reinterpret_cast<uintptr_t>(w.data.data) % 64 == 0);
          read += rows.size() * cols.size() * stored_bytes;
          held += rows.size() * cols.size() * dtype_size(expected);
        };
        check("f32", dtype, 4);
        check("bf16", DType::kBF16, 2);
        check("f16", DType::kF16, 2);
        CHECK(source.bytes_read() == read);
        CHECK(source.bytes_held() == held);
        CHECK(fixture.progress == read);
      }
      CHECK(source.matrix("f32", n, k, {0, n}, {0, k}, /*keep_f32=*/true).data.dtype ==
            DType::kF32);
    }
  }
  CHECK(remote.copies > 0);
}

TEST_CASE("float32 becomes bfloat16 rounded to nearest even") {
  test::HostDevice device;
  Fixture fixture(
      {test::stored_f32("w.weight", {1, 4}, {1.00390625f, 1.01171875f, -3.0e38f, 0.1f})}, {},
      DType::kBF16, device);
  CHECK(fixture.values(fixture.source->matrix("w", 1, 4, {0, 1}, {0, 4}).data) ==
        std::vector<float>{1.0f, 1.015625f, to_float(to_bf16(-3.0e38f)), to_float(to_bf16(0.1f))});
}

TEST_CASE("vectors become float32") {
  test::HostDevice device;
  const std::vector<float> whole = small_integers(19, 4);
  Fixture fixture({test::stored_f32("a", {19}, whole), test::stored_bf16("b", {19}, whole),
                   test::stored_f16("c", {19}, whole)},
                  {}, DType::kBF16, device);
  for (const char* name : {"a", "b", "c"}) {
    const Tensor part = fixture.source->vector(name, 19, {3, 17});
    CHECK(part.dtype == DType::kF32);
    CHECK(part.rank == 1);
    CHECK(fixture.values(part) == std::vector<float>(whole.begin() + 3, whole.begin() + 17));
  }
  CHECK(fixture.source->bytes_read() == 14 * (4 + 2 + 2));
  CHECK(fixture.source->bytes_held() == 3 * 14 * 4);
}

TEST_CASE("a matrix of many pieces is read whole by several threads") {
  const int64_t n = 3000, k = 1024;  // 6 MiB of BF16
  test::HostDevice device;
  const std::vector<float> whole = small_integers(n * k, 5);
  Fixture fixture({test::stored_bf16("w.weight", {n, k}, whole)}, {}, DType::kBF16, device);
  CHECK(fixture.values(fixture.source->matrix("w", n, k, {0, n}, {0, k}).data) == whole);
  CHECK(fixture.values(fixture.source->matrix("w", n, k, {1, n}, {512, k}).data) ==
        slice_of(whole, k, {1, n}, {512, k}));
}

// FP8 codes that are numbers, and a scale per block.
struct Fp8 {
  int64_t n, k;
  int32_t block_rows, block_cols;
  std::vector<uint8_t> codes;
  std::vector<float> scales, values;

  Fp8(int64_t n, int64_t k, int32_t block_rows, int32_t block_cols)
      : n(n), k(k), block_rows(block_rows), block_cols(block_cols) {
    std::mt19937 random(6);
    for (int64_t i = 0; i < scale_rows() * scale_cols(); ++i) {
      scales.push_back(0.25f + static_cast<float>(random() % 1000) / 512);
    }
    for (int64_t i = 0; i < n * k; ++i) {
      uint8_t code = static_cast<uint8_t>(random());
      if ((code & 0x7f) == 0x7f) code &= 0x80;
      codes.push_back(code);
      values.push_back(to_float(F8E4M3{code}) *
                       scales[i / k / block_rows * scale_cols() + i % k / block_cols]);
    }
  }
  int64_t scale_rows() const { return (n + block_rows - 1) / block_rows; }
  int64_t scale_cols() const { return (k + block_cols - 1) / block_cols; }
  StoredTensor weight() const { return {"w.weight", "F8_E4M3", {n, k}, bytes_of(codes)}; }
  StoredTensor scale() const {
    return test::stored_f32("w.weight_scale_inv", {scale_rows(), scale_cols()}, scales);
  }
  std::string config() const {
    return fmt::format(
        R"({{"quantization_config": {{"quant_method": "fp8", "weight_block_size": [{}, {}]}}}})",
        block_rows, block_cols);
  }
};

TEST_CASE("FP8 slices multiply out to the slice of the whole") {
  for (const Fp8& fp8 : {Fp8(300, 200, 128, 128), Fp8(300, 200, 16, 48), Fp8(128, 256, 128, 128)}) {
    test::HostDevice host;
    test::RemoteDevice remote;
    for (Device* device : std::initializer_list<Device*>{&host, &remote}) {
      Fixture fixture({fp8.scale(), fp8.weight()}, fp8.config(), DType::kBF16, *device);
      for (const Range rows :
           {Range{0, fp8.n}, Range{0, 100}, Range{100, 128}, Range{120, fp8.n}, Range{9, 9}}) {
        for (const Range cols : {Range{0, fp8.k}, Range{64, 192}, Range{130, fp8.k}, Range{5, 5}}) {
          const uint64_t before = fixture.source->bytes_read();
          const Weight w = fixture.source->matrix("w", fp8.n, fp8.k, rows, cols);
          const std::vector<float> codes = fixture.values(w.data), scales = fixture.values(w.scale);
          std::vector<float> values;
          for (int64_t i = 0; i < w.n(); ++i) {
            for (int64_t j = 0; j < w.k(); ++j) {
              values.push_back(codes[i * w.k() + j] *
                               scales[(i + w.row_offset) / w.block_rows * w.scale.dim(1) +
                                      (j + w.col_offset) / w.block_cols]);
            }
          }
          CHECK(values == slice_of(fp8.values, fp8.k, rows, cols));
          CHECK(fixture.source->bytes_read() - before ==
                static_cast<uint64_t>(w.data.num_bytes() + w.scale.num_bytes()));
          CHECK(w.row_offset == rows.begin % fp8.block_rows);
          CHECK(w.col_offset == cols.begin % fp8.block_cols);
          if (rows.size() > 0 && cols.size() > 0) {
            CHECK(w.scale.dim(0) ==
                  (rows.end - 1) / fp8.block_rows - rows.begin / fp8.block_rows + 1);
            CHECK(w.scale.dim(1) ==
                  (cols.end - 1) / fp8.block_cols - cols.begin / fp8.block_cols + 1);
          }
        }
      }
    }
  }
}

TEST_CASE("FP8 that contradicts its scales or the config is refused") {
  const Fp8 fp8(10, 20, 128, 128);
  test::HostDevice device;
  const auto load = [&](const std::vector<StoredTensor>& tensors, const std::string& config) {
    Fixture fixture(tensors, config, DType::kBF16, device);
    fixture.source->matrix("w", 10, 20, {0, 10}, {0, 20});
  };
  const StoredTensor scale = fp8.scale();
  CHECK_NOTHROW(load({scale, fp8.weight()}, fp8.config()));
  INVALID(load({scale, fp8.weight()}, {}), "\"w.weight\"", "no quantization_config");
  INVALID(load({fp8.weight()}, fp8.config()), "\"w.weight\"", "\"w.weight_scale_inv\" is missing");
  INVALID(
      load({test::stored_f32("w.weight", {10, 20}, small_integers(200, 1)), scale}, fp8.config()),
      "\"w.weight\" is float32", "weight_scale_inv");
  INVALID(load({test::stored_f32(scale.name, {1, 2}, {1, 1}), fp8.weight()}, fp8.config()),
          "[1, 2]", "[1, 1]");
  INVALID(load({test::stored_f32(scale.name, {1}, {1}), fp8.weight()}, fp8.config()), "[1]",
          "[1, 1]");
  INVALID(load({fp8.weight(), test::stored_bf16(scale.name, {1, 1}, {1})}, fp8.config()),
          "bfloat16", "float32");
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    INVALID(load({test::stored_f32(scale.name, {1, 1}, {bad}), fp8.weight()}, fp8.config()),
            scale.name, "not finite");
  }
}

TEST_CASE("an FP8 code that is NaN is found wherever it is, and only in the slice that is read") {
  const Fp8 fp8(4, 19, 128, 128);  // 19: eight at a time leaves a rest
  test::HostDevice device;
  for (size_t at = 0; at < fp8.codes.size(); ++at) {
    for (const uint8_t nan : {uint8_t{0x7f}, uint8_t{0xff}}) {
      StoredTensor weight = fp8.weight();
      weight.data[at] = static_cast<char>(nan);
      Fixture fixture({fp8.scale(), weight}, fp8.config(), DType::kBF16, device);
      INVALID(fixture.source->matrix("w", 4, 19, {0, 4}, {0, 19}), "\"w.weight\"", "not numbers");
      const auto row = static_cast<int64_t>(at) / 19;
      CHECK_NOTHROW(fixture.source->matrix("w", 4, 19, {row + 1, 4}, {0, 19}));
      CHECK_NOTHROW(fixture.source->matrix("w", 4, 19, {0, row}, {0, 19}));
    }
  }
}

TEST_CASE("missing tensors, other shapes and other types are refused by name") {
  test::HostDevice device;
  Fixture fixture({{"i.weight", "I32", {2, 2}, std::string(16, '\0')},
                   {"v", "I64", {2}, std::string(16, '\0')},
                   test::stored_f32("w.weight", {2, 3}, small_integers(6, 1))},
                  {}, DType::kF32, device);
  CheckpointSource& source = *fixture.source;
  INVALID(source.matrix("x", 2, 3, {0, 2}, {0, 3}), fixture.dir().path(), "\"x.weight\"", "[2, 3]",
          "missing");
  INVALID(source.matrix("w", 3, 2, {0, 2}, {0, 2}), "\"w.weight\"", "[2, 3]", "[3, 2]");
  INVALID(source.vector("w.weight", 2, {0, 2}), "[2, 3]", "[2]");
  INVALID(source.matrix("i", 2, 2, {0, 2}, {0, 2}), "\"i.weight\"", "int32");
  INVALID(source.vector("v", 2, {0, 2}), "\"v\"", "int64");
  CHECK(source.has("w.weight"));
  CHECK_FALSE(source.has("w"));
}

TEST_CASE("a file that shrinks while it is loaded is refused, from several threads too") {
  const int64_t n = 4096, k = 1024;
  test::HostDevice device;
  Fixture fixture({test::stored_bf16("w.weight", {n, k}, small_integers(n * k, 7))}, {},
                  DType::kBF16, device);
  std::filesystem::resize_file(fixture.dir().path("model.safetensors"), 4 << 20);
  INVALID(fixture.source->matrix("w", n, k, {0, n}, {0, k}), "model.safetensors", "shrank");
}

TEST_CASE("small tensors share memory, unused ones are listed") {
  test::HostDevice device;
  std::vector<StoredTensor> tensors;
  for (int i = 0; i < 500; ++i)
    tensors.push_back(test::stored_f32(fmt::format("t{}", i), {3}, {1, 2, 3}));
  Fixture fixture(tensors, {}, DType::kF32, device);
  for (int i = 2; i < 500; ++i) {
    const Tensor t = fixture.source->vector(fmt::format("t{}", i), 3, {0, 3});
    CHECK(fixture.values(t) == std::vector<float>{1, 2, 3});
  }
  CHECK(device.allocations == 1);
  CHECK(fixture.source->unused() == std::vector<std::string>{"t0", "t1"});
  const Tensor derived = fixture.source->allocate("derived", DType::kBF16, {5, 7});
  CHECK(derived.shape_string() == "bfloat16[5, 7]");
  CHECK(fixture.source->bytes_held() == 498 * 12 + 70);
}

}  // namespace
}  // namespace shoal
