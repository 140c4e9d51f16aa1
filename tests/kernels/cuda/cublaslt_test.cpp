// CublasLt: products against the double-precision reference, what it declines, that plans are made
// once, graphs, tuning and its file. The rules of the library itself: cublaslt_rules_test.cpp.
#include "kernels/cuda/cublaslt.h"

#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/kernels/cuda/cuda_case.h"
#include "tests/support/skip.h"

#ifdef SHOAL_CUDA_EMULATED
#include <emulated_cuda/cublaslt_control.h>
#endif

namespace shoal::test {
namespace {

// Tensor cores of sm_90 keep some 14 bits of a sum of FP8 products (DeepSeek-V3, 3.3.2); the
// emulation sums in float32.
#ifdef SHOAL_CUDA_EMULATED
constexpr double kFp8Eps = kEps;
#else
constexpr double kFp8Eps = 0x1p-14;
#endif

struct Multiplier {
  CublasLt lt{cuda_device()};
  Workspace scratch{cuda_device(), size_t{8} << 20};
  bool operator()(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out) {
    return lt.matmul(x, w, bias, out, scratch);
  }
};

HostTensor poisoned(DType dtype, int64_t rows, int64_t cols, int64_t gap = 0) {
  HostTensor tensor = HostTensor::strided(dtype, rows, cols, gap);
  std::memset(tensor.memory().data(), 0xff, tensor.memory().size());
  return tensor;
}

// What the product of DeepSeek's FP8 inference is: activations scaled per token and 128 columns to
// a maximum of 448 and rounded to e4m3; float32 sums of each block of 128, times both scales.
Expected fp8_linear(const Tensor& x, const Weight& w, const Tensor& bias) {
  const int64_t k = w.k();
  Expected expected;
  for (int64_t t = 0; t < x.dim(0); ++t) {
    std::vector<double> rounded(k);
    for (int64_t g = 0; g < k; g += 128) {
      const int64_t end = std::min(g + 128, k);
      float largest = 0x1p-100f;
      for (int64_t i = g; i < end; ++i) {
        largest =
            std::max(largest, std::fabs(static_cast<float>(value_at(x, t * x.stride[0] + i))));
      }
      const float scale = largest / 448.0f, inverse = 448.0f / largest;
      for (int64_t i = g; i < end; ++i) {
        const auto value = static_cast<float>(value_at(x, t * x.stride[0] + i));
        rounded[i] = static_cast<double>(to_float(to_f8e4m3(value * inverse))) * scale;
      }
    }
    for (int64_t n = 0; n < w.n(); ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t i = 0; i < k; ++i) {
        const double weight = value_at(w.data, n * w.data.stride[0] + i) *
                              value_at(w.scale, n / 128 * w.scale.stride[0] + i / 128);
        sum += rounded[i] * weight;
        magnitude += std::fabs(rounded[i] * weight);
      }
      if (bias.defined()) {
        sum += value_at(bias, n);
        magnitude += std::fabs(value_at(bias, n));
      }
      expected.push(sum, magnitude * kFp8Eps * chain(k));
    }
  }
  return expected;
}

std::string device_product(Multiplier& multiply, const HostTensor& x, const HostWeight& w,
                           const HostTensor& bias, DType out_type, int64_t gap) {
  const OnDevice x_device(x);
  const WeightOnDevice w_device(w);
  const OnDevice bias_device(bias);
  const OnDevice out(poisoned(out_type, x.view().dim(0), w.weight.n(), gap));
  const Tensor bias_view = bias.view().defined() ? bias_device.view() : Tensor();
  if (!multiply(x_device, w_device, bias_view, out)) return "not taken";
  const HostTensor got = out.host();
  const Expected expected = w.weight.data.dtype == DType::kF8E4M3 ? fp8_linear(x, w.weight, bias)
                                                                  : linear(x, w.weight, bias);
  return first_violation(got, stored_as(expected, out_type));
}

struct Product {
  int64_t tokens, n, k;
};

TEST_CASE("cublaslt: BF16 and F32 products, bias, strides", "[cuda][cublaslt]") {
  Random random(1);
  Multiplier multiply;
  // One token; few and many; a K that is split; a bucket that is not full (37: 40, 130: 144).
  for (const auto& [tokens, n, k] : {Product{1, 64, 64}, Product{2, 24, 1024}, Product{3, 48, 512},
                                     Product{37, 136, 264}, Product{130, 40, 72}}) {
    for (const auto& [in, out] :
         {std::pair{DType::kBF16, DType::kBF16}, std::pair{DType::kBF16, DType::kF32},
          std::pair{DType::kF32, DType::kF32}}) {
      const HostWeight w = random_weight(random, in, n, k);
      const HostTensor bias = random.tensor(DType::kF32, {n});
      for (const int64_t gap : {0, 8}) {
        HostTensor x = HostTensor::strided(in, tokens, k, gap);
        random.fill(x);
        INFO(fmt::format("{} x {} -> {}, gap {}", x.view().shape_string(),
                         w.weight.data.shape_string(), dtype_name(out), gap));
        CHECK(device_product(multiply, x, w, HostTensor(), out, gap) == "");
        CHECK(device_product(multiply, x, w, bias, out, gap) == "");
      }
    }
  }
  CHECK(multiply.lt.describe().find("float32 + bias: algorithm") != std::string::npos);
  CHECK(multiply.lt.describe().find("bfloat16 + bias") == std::string::npos);
}

TEST_CASE("cublaslt: a BF16 output gets its F32 bias before the one rounding", "[cuda][cublaslt]") {
  // 256 + 1 is no bfloat16 and would round to 256, and then 256 - 255.5 to 0.5; exactly it is 1.5.
  HostTensor x(DType::kBF16, {4, 8}), bias(DType::kF32, {8});
  HostWeight w;
  w.data = HostTensor(DType::kBF16, {8, 8});
  for (int i = 0; i < 32; ++i)
    x.view().as<BF16>()[i] = to_bf16(i % 8 == 0 ? 16 : i % 8 == 1 ? 1 : 0);
  for (int i = 0; i < 64; ++i) {
    w.data.view().as<BF16>()[i] = to_bf16(i % 8 == 0 ? 16 : i % 8 == 1 ? 1 : 0);
  }
  for (int i = 0; i < 8; ++i) bias.view().as<float>()[i] = -255.5f;
  w.weight.data = w.data;
  Multiplier multiply;
  const OnDevice out(poisoned(DType::kBF16, 4, 8));
  REQUIRE(multiply(OnDevice(x), WeightOnDevice(w), OnDevice(bias), out));
  CHECK(values(out.host()) == std::vector<double>(32, 1.5));
}

TEST_CASE("cublaslt: FP8 blocks on sm_90", "[cuda][cublaslt]") {
  if (cuda_device().arch() != 90) SHOAL_SKIP("FP8 block scales need sm_90");
  Random random(2);
  Multiplier multiply;
  REQUIRE(multiply.lt.fp8_gemm());
  // Scales usable as they are (K / 128 = 4, 8) and padded (1, 5, 6 + a short block); a last block
  // of 64 rows (N = 576); tokens that are no multiple of 4.
  for (const auto& [tokens, n, k] :
       {Product{1, 128, 128}, Product{3, 576, 512}, Product{4, 64, 640}, Product{7, 136, 784},
        Product{33, 256, 1024}, Product{64, 72, 128}}) {
    const HostWeight w = random_weight(random, DType::kF8E4M3, n, k);
    const HostTensor bias = random.tensor(DType::kF32, {n});
    for (const DType out : {DType::kBF16, DType::kF32}) {
      for (const int64_t gap : {0, 8}) {
        HostTensor x = HostTensor::strided(DType::kBF16, tokens, k, gap);
        random.fill(x);
        // Groups and tokens of other magnitudes: a scale read from a wrong place shows.
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t i = 0; i < k; ++i) {
            BF16& value = x.view().row<BF16>(t)[i];
            value = to_bf16(std::ldexp(to_float(value), static_cast<int>((3 * t + i / 128) % 7)));
          }
        }
        INFO(fmt::format("{} x {} -> {}, gap {}", x.view().shape_string(),
                         w.weight.data.shape_string(), dtype_name(out), gap));
        CHECK(device_product(multiply, x, w, HostTensor(), out, gap) == "");
        CHECK(device_product(multiply, x, w, bias, out, gap) == "");
      }
    }
  }
}

TEST_CASE("cublaslt: scales that the loader has padded are used where they lie",
          "[cuda][cublaslt]") {
  if (cuda_device().arch() != 90) SHOAL_SKIP("FP8 block scales need sm_90");
  Random random(3);
  const HostWeight host = random_weight(random, DType::kF8E4M3, 256, 640);
  const HostTensor x = random.tensor(DType::kBF16, {8, 640});
  const HostTensor wide = poisoned(DType::kF32, 2, 8);
  for (int row = 0; row < 2; ++row) {
    std::copy_n(host.scale.view().row<float>(row), 5, wide.view().row<float>(row));
  }
  const WeightOnDevice w_device(host);
  const OnDevice wide_device(wide), out(poisoned(DType::kF32, 8, 256));
  Weight w = w_device;
  w.scale = wide_device.view().slice(1, 0, 5);
  Multiplier multiply;
  REQUIRE(multiply(OnDevice(x), w, Tensor(), out));
  CHECK(first_violation(out.host(), fp8_linear(x, host.weight, Tensor())) == "");
}

TEST_CASE("cublaslt: zero tokens", "[cuda][cublaslt]") {
  Random random(4);
  Multiplier multiply;
  for (const DType type : {DType::kBF16, DType::kF8E4M3}) {
    if (type == DType::kF8E4M3 && !multiply.lt.fp8_gemm()) continue;
    const HostWeight w = random_weight(random, type, 64, 128);
    CHECK(device_product(multiply, HostTensor(DType::kBF16, {0, 128}), w, HostTensor(), DType::kF32,
                         0) == "");
  }
  CHECK(multiply.lt.describe() == "");
}

TEST_CASE("cublaslt: what it leaves to others", "[cuda][cublaslt][declines]") {
  Random random(5);
  Multiplier multiply;
  const auto taken = [&](DType x, const HostWeight& w, DType out) {
    const OnDevice x_device(random.tensor(x, {4, w.weight.k()}));
    return multiply(x_device, WeightOnDevice(w), Tensor(),
                    OnDevice(poisoned(out, 4, w.weight.n())));
  };
  const HostWeight bf16 = random_weight(random, DType::kBF16, 64, 128);
  CHECK(taken(DType::kBF16, bf16, DType::kBF16));
  CHECK_FALSE(taken(DType::kF32, bf16, DType::kF32));
  CHECK_FALSE(taken(DType::kF32, random_weight(random, DType::kF32, 64, 128), DType::kBF16));
  CHECK_FALSE(taken(DType::kBF16, random_weight(random, DType::kI8, 64, 128), DType::kBF16));
  CHECK_FALSE(taken(DType::kBF16, random_weight(random, DType::kI4x2, 64, 128), DType::kBF16));
  // Rows of 24 and 12 bytes.
  CHECK_FALSE(taken(DType::kBF16, random_weight(random, DType::kBF16, 64, 12), DType::kBF16));
  CHECK_FALSE(taken(DType::kBF16, random_weight(random, DType::kBF16, 6, 128), DType::kBF16));

  // Rows that begin at 2 bytes past an aligned address, and rows 130 elements apart.
  const OnDevice wide(random.tensor(DType::kBF16, {4, 136}));
  const OnDevice gaps([&] {
    HostTensor x = HostTensor::strided(DType::kBF16, 4, 128, 2);
    random.fill(x);
    return x;
  }());
  const WeightOnDevice w(bf16);
  const OnDevice out(poisoned(DType::kBF16, 4, 64));
  CHECK_FALSE(multiply(wide.view().slice(1, 1, 129), w, Tensor(), out));
  CHECK_FALSE(multiply(gaps, w, Tensor(), out));
  CHECK(multiply(wide.view().slice(1, 8, 136), w, Tensor(), out));

  const HostWeight fp8 = random_weight(random, DType::kF8E4M3, 128, 256);
  if (cuda_device().arch() != 90) {
    CHECK_FALSE(multiply.lt.fp8_gemm());
    CHECK_FALSE(taken(DType::kBF16, fp8, DType::kBF16));
    return;
  }
  CHECK(taken(DType::kBF16, fp8, DType::kBF16));
  CHECK_FALSE(taken(DType::kF32, fp8, DType::kF32));
  CHECK_FALSE(
      taken(DType::kBF16, random_weight(random, DType::kF8E4M3, 128, 256, 64), DType::kBF16));
  CHECK_FALSE(
      taken(DType::kBF16, random_weight(random, DType::kF8E4M3, 128, 256, 128, 64), DType::kBF16));
  CHECK_FALSE(taken(DType::kBF16, random_weight(random, DType::kF8E4M3, 128, 256, 128, 0, 64),
                    DType::kBF16));
  CHECK_FALSE(taken(DType::kBF16, random_weight(random, DType::kF8E4M3, 130, 256), DType::kF32));
  CHECK_FALSE(taken(DType::kBF16, random_weight(random, DType::kF8E4M3, 128, 264), DType::kF32));
  multiply.lt.set_fp8_gemm(false);
  CHECK_FALSE(taken(DType::kBF16, fp8, DType::kBF16));
}

TEST_CASE("cublaslt: a plan made and used while a graph is recorded", "[cuda][cublaslt]") {
  Random random(6);
  Multiplier multiply;
  {
    Workspace::Scope scope(multiply.scratch);  // the first chunk is allocated outside of the graph
    multiply.scratch.tensor(DType::kF32, {1});
  }
  for (const DType type : {DType::kBF16, DType::kF8E4M3}) {
    if (type == DType::kF8E4M3 && !multiply.lt.fp8_gemm()) continue;
    const HostWeight w = random_weight(random, type, 64, 640);
    const HostTensor bias = random.tensor(DType::kF32, {64});
    const HostTensor first = random.tensor(DType::kBF16, {5, 640}),
                     second = random.tensor(DType::kBF16, {5, 640});
    const OnDevice x(first), bias_device(bias), out(poisoned(DType::kBF16, 5, 64));
    const WeightOnDevice w_device(w);
    bool taken = false;
    const auto graph =
        cuda_device().capture([&] { taken = multiply(x, w_device, bias_device, out); });
    REQUIRE(taken);
    REQUIRE(graph != nullptr);
    for (const HostTensor& host : {first, second}) {
      cuda_device().copy_to_device(x.view().data, host.memory().data(), host.memory().size());
      graph->launch();
      const Expected expected =
          type == DType::kBF16 ? linear(host, w.weight, bias) : fp8_linear(host, w.weight, bias);
      CHECK(first_violation(out.host(), stored_as(expected, DType::kBF16)) == "");
    }
  }
}

#ifdef SHOAL_CUDA_EMULATED
TEST_CASE("cublaslt: descriptors and heuristics once per product", "[cuda][cublaslt]") {
  Random random(7);
  Multiplier multiply;
  const HostTensor no_bias, bias = random.tensor(DType::kF32, {64});
  for (const DType type : {DType::kBF16, DType::kF8E4M3}) {
    const HostWeight w = random_weight(random, type, 64, 640), other = w;
    const HostTensor x = random.tensor(DType::kBF16, {136, 640});
    const OnDevice x_device(x), again(x), out(poisoned(DType::kBF16, 136, 64)), bias_device(bias);
    const WeightOnDevice w_device(w), other_device(other);
    REQUIRE(multiply(x_device, w_device, Tensor(), out));
    REQUIRE(multiply(x_device, w_device, bias_device, out));
    const emulated::CublasLtCalls before = emulated::cublaslt_calls();
    REQUIRE(multiply(x_device, w_device, Tensor(), out));
    REQUIRE(multiply(again, other_device, bias_device, out));  // the same shapes elsewhere
    const emulated::CublasLtCalls after = emulated::cublaslt_calls();
    CHECK(after.descriptors == before.descriptors);
    CHECK(after.heuristics == before.heuristics);
    CHECK(after.checks == before.checks);
    CHECK(after.matmuls == before.matmuls + 2);

    // 129 to 144 tokens are of one bucket: other layouts, no other algorithm.
    const OnDevice x144(random.tensor(DType::kBF16, {144, 640})),
        out144(poisoned(DType::kBF16, 144, 64));
    REQUIRE(multiply(x144, w_device, Tensor(), out144));
    CHECK(emulated::cublaslt_calls().heuristics == before.heuristics);
  }
}

TEST_CASE("cublaslt: an algorithm that does not fit all tokens of its bucket", "[cuda][cublaslt]") {
  Random random(8);
  Multiplier multiply;
  const HostWeight w = random_weight(random, DType::kBF16, 64, 128);
  // The stand-in's algorithm 70 is its first choice for 144 tokens and refuses 130.
  for (const int64_t tokens : {144, 130}) {
    CHECK(device_product(multiply, random.tensor(DType::kBF16, {tokens, 128}), w, HostTensor(),
                         DType::kBF16, 0) == "");
  }
  const std::string plans = multiply.lt.describe();
  CHECK(plans.find("bfloat16 [144, 128] x [64, 128]^T -> bfloat16: algorithm 70") !=
        std::string::npos);
  CHECK(plans.find("bfloat16 [130, 128] x [64, 128]^T -> bfloat16: algorithm 66") !=
        std::string::npos);
}

TEST_CASE("cublaslt: a failing product names itself", "[cuda][cublaslt]") {
  Random random(9);
  Multiplier multiply;
  const HostWeight w = random_weight(random, DType::kBF16, 64, 128);
  const HostTensor x = random.tensor(DType::kBF16, {4, 128});
  emulated::fail_cublaslt_matmul_after(0);
  CHECK_THROWS_WITH(device_product(multiply, x, w, HostTensor(), DType::kF32, 0),
                    Catch::Contains("cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED") &&
                        Catch::Contains("bfloat16 [4, 128] x [64, 128]^T -> float32"));
  CHECK(device_product(multiply, x, w, HostTensor(), DType::kF32, 0) == "");
}
#endif

// ---- Tuning, and its file ----------------------------------------------------------------------

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "shoal-cublaslt-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// Runs body with the log going to the returned text.
std::string logged(const std::function<void()>& body) {
  std::ostringstream text;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_st>(text)));
  body();
  spdlog::set_default_logger(before);
  return text.str();
}

// Tunes one product and returns its plan's line.
struct Tuned {
  Random random{10};
  HostWeight w = random_weight(random, DType::kBF16, 64, 1024);
  HostTensor x = random.tensor(DType::kBF16, {16, 1024});
  OnDevice x_device{x};
  WeightOnDevice w_device{w};
  OnDevice out{poisoned(DType::kF32, 16, 64)};

  bool tune(Multiplier& m) { return m.lt.tune(x_device, w_device, Tensor(), out, m.scratch); }
  bool multiply(Multiplier& m) { return m(x_device, w_device, Tensor(), out); }
  std::string violation() { return first_violation(out.host(), linear(x, w.weight, Tensor())); }
};

TEST_CASE("cublaslt: tuned plans survive on disk", "[cuda][cublaslt]") {
  const TemporaryFolder folder;
  const std::string path = folder / "plans.json";
  Tuned tuned;
  Multiplier first;
  REQUIRE(tuned.tune(first));
  CHECK(tuned.violation() == "");
  CHECK(first.lt.describe().find(", tuned (") != std::string::npos);
  REQUIRE(tuned.multiply(first));
  CHECK(tuned.violation() == "");
  first.lt.save(path);
  CHECK_FALSE(std::filesystem::exists(path + ".part"));

  Multiplier second;
  CHECK(logged([&] { CHECK(second.lt.load(path) == 1); }) == "");
  CHECK(second.lt.describe() == "");
  // Saved again before its first use, it is still there.
  second.lt.save(folder / "again.json");
  CHECK(read_text(folder / "again.json") == read_text(path));
#ifdef SHOAL_CUDA_EMULATED
  const int64_t heuristics = emulated::cublaslt_calls().heuristics;
#endif
  REQUIRE(tuned.multiply(second));
#ifdef SHOAL_CUDA_EMULATED
  CHECK(emulated::cublaslt_calls().heuristics == heuristics);
#endif
  CHECK(tuned.violation() == "");
  const std::string before = first.lt.describe(), after = second.lt.describe();
  const std::string algorithm = before.substr(0, before.find(", workspace"));
  CHECK(after.substr(0, after.find(", workspace")) == algorithm);
  CHECK(after.find(", tuned before") != std::string::npos);

  CHECK_THROWS_AS(first.lt.save(folder / "no such folder/plans.json"), InvalidInput);
}

TEST_CASE("cublaslt: a product is timed once", "[cuda][cublaslt]") {
  Tuned tuned;
  Multiplier m;
  REQUIRE(tuned.tune(m));
  const std::string plans = m.lt.describe();
  cuda_device().zero(tuned.out.view().data, tuned.out.view().num_bytes());
#ifdef SHOAL_CUDA_EMULATED
  const int64_t matmuls = emulated::cublaslt_calls().matmuls;
#endif
  REQUIRE(tuned.tune(m));
#ifdef SHOAL_CUDA_EMULATED
  CHECK(emulated::cublaslt_calls().matmuls == matmuls + 1);
#endif
  CHECK(tuned.violation() == "");
  CHECK(m.lt.describe() == plans);
}

TEST_CASE("cublaslt: a plan file that is not ours is ignored with one line", "[cuda][cublaslt]") {
  const TemporaryFolder folder;
  const std::string path = folder / "plans.json";
  Tuned tuned;
  Multiplier first;
  REQUIRE(tuned.tune(first));
  first.lt.save(path);
  const std::string good = read_text(path);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    return text.replace(at, from.size(), to);
  };
  const size_t digits = good.find("\"algorithm\": \"") + 14;
  std::string flipped = good;
  flipped[digits + 20] = flipped[digits + 20] == '0' ? '1' : '0';

  const std::vector<std::pair<std::string, std::string>> bad = {
      {"nothing", ""},
      {"half", good.substr(0, good.size() / 2)},
      {"binary", std::string("\x00\xff\x1b[2J\n\x07", 8)},
      {"deep", std::string(100000, '[')},
      {"a number", "1e400"},
      {"an array", "[]"},
      {"another format", with("shoal cuBLASLt plans", "somebody's")},
      {"a later version", with("\"version\": 1", "\"version\": 2")},
      {"another machine", with("cuBLASLt ", "cuBLASLt 9")},
      {"plans of another kind", with("\"plans\": [", "\"plans\": 7, \"others\": [")},
      {"a changed key", with("1024", "1025")},
      {"a changed algorithm", flipped},
  };
  for (const auto& [what, text] : bad) {
    INFO(what);
    write_text(path, text);
    Multiplier second;
    size_t loaded = 1;
    const std::string log = logged([&] { loaded = second.lt.load(path); });
    CHECK(loaded == 0);
    CHECK(std::count(log.begin(), log.end(), '\n') == 1);
    CHECK(log.find(path) != std::string::npos);
    CHECK(log.find('\x1b') == std::string::npos);
    REQUIRE(tuned.multiply(second));
    CHECK(tuned.violation() == "");
  }
  Multiplier second;
  CHECK(logged([&] { CHECK(second.lt.load(folder / "missing.json") == 0); }).find("no such file") !=
        std::string::npos);
  CHECK(second.lt.load(folder / ".") == 0);
}

TEST_CASE("cublaslt: a forged plan of right checksum is refused by what it says",
          "[cuda][cublaslt]") {
  const TemporaryFolder folder;
  const std::string path = folder / "plans.json";
  Tuned tuned;
  Multiplier first;
  REQUIRE(tuned.tune(first));
  first.lt.save(path);
  const auto forge = [&](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json file = nlohmann::json::parse(read_text(path));
    change(file["plans"][0]);
    uint64_t hash = 0xcbf29ce484222325u;
    for (const unsigned char c : file["plans"].dump()) hash = (hash ^ c) * 0x100000001b3u;
    file["checksum"] = fmt::format("{:016x}", hash);
    write_text(folder / "forged.json", file.dump());
    Multiplier second;
    const size_t loaded = second.lt.load(folder / "forged.json");
    REQUIRE(tuned.multiply(second));  // and whatever was loaded does no harm
    CHECK(tuned.violation() == "");
    return loaded;
  };
  CHECK(forge([](nlohmann::json& plan) {}) == 1);
  CHECK(forge([](nlohmann::json& plan) { plan["settings"][0] = 1; }) == 0);
  CHECK(forge([](nlohmann::json& plan) { plan["key"][3] = -1; }) == 0);
  CHECK(forge([](nlohmann::json& plan) { plan["key"][3] = 1e300; }) == 0);
  CHECK(forge([](nlohmann::json& plan) { plan["key"] = "key"; }) == 0);
  CHECK(forge([](nlohmann::json& plan) { plan["key"].push_back(1); }) == 0);
  CHECK(forge([](nlohmann::json& plan) { plan.erase("algorithm"); }) == 0);
  CHECK(forge([](nlohmann::json& plan) { plan["algorithm"] = "xyz"; }) == 0);
#ifdef SHOAL_CUDA_EMULATED
  // Well formed, but no algorithm: the library's own check finds it at the first use.
  CHECK(forge([](nlohmann::json& plan) {
          plan["algorithm"] = std::string(128, '0');
          plan["settings"] = {0, 0, 0, 0};
        }) == 1);
#endif
}

}  // namespace
}  // namespace shoal::test
