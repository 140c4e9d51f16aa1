// The matrix products of the CUDA back end against the reference: every form, weight type and odd
// shape.
#include <cmath>
#include <cstring>

#include "kernels/cuda/matmul.h"
#include "tests/kernels/cuda/cuda_case.h"

namespace shoal::test {
namespace {

// The reference's bound is of float32 sums over four lanes or more. Here an element may be one
// chain over k; the tensor cores cut off what they shift out, an error of up to a unit and not half
// of one; and a float32 weight is three numbers there, a float16 two.
Expected product(const Tensor& x, const Weight& w, const Tensor& bias, DType out) {
  Expected expected = linear(x, w, bias);
  const int parts = w.data.dtype == DType::kF32 ? 3 : (w.data.dtype == DType::kF16 ? 2 : 1);
  const double additions = 2.0 * parts * static_cast<double>(w.k()) + 16;
  const double more = additions / chain(w.k());
  for (double& bound : expected.bound) bound *= more;
  return stored_as(std::move(expected), out);
}

struct Shape {
  int64_t n, k;
};

// Rows of x and of out apart, so that rows of x begin at 16 bytes whatever k is, or that they do
// not.
HostTensor activations(Random& random, DType type, int64_t rows, int64_t k, bool aligned) {
  HostTensor x = HostTensor::strided(type, rows, k, aligned ? 16 - k % 8 : 17 - k % 8);
  random.fill(x);
  return x;
}

Workspace& scratch() {
  static Workspace workspace(cuda_device());
  return workspace;
}

// Our own forms, which CudaOps::linear may leave to cuBLASLt.
void check_linear(const HostTensor& x, const HostWeight& w, const HostTensor& bias,
                  DType out_type) {
  const int64_t rows = x.view().dim(0), n = w.weight.n();
  const Expected expected =
      product(x, w.weight, bias.view().rank ? bias.view() : Tensor(), out_type);
  const OnDevice device_x(x);
  const WeightOnDevice device_w(w);
  std::unique_ptr<OnDevice> device_bias;
  if (bias.view().rank) device_bias = std::make_unique<OnDevice>(bias);
  for_each_schedule([&] {
    const OnDevice out(HostTensor::strided(out_type, rows, n, 3));
    own_linear(cuda_device(), scratch(), device_x, device_w,
               device_bias ? device_bias->view() : Tensor(), out);
    CHECK(first_violation(out.host(), expected) == "");
  });
}

}  // namespace

TEST_CASE("cuda linear: every type and shape, aligned or not, with and without bias", "[linear]") {
  Random random(1);
  for (const WeightFormat format : weight_formats()) {
    for (const Shape shape : {Shape{1, 1}, {5, 3}, {7, 16}, {49, 130}, {70, 304}, {140, 256}}) {
      if (format.type == DType::kI4x2 && shape.k % 2 == 1) continue;
      const HostWeight w =
          random_weight(random, format.type, shape.n, shape.k, 128, 0, 0, format.min);
      const HostTensor bias = random.tensor(DType::kF32, {shape.n});
      for (const DType activation : kActivations) {
        for (const int64_t rows : {0, 1, 3, 8, 16, 33, 70}) {
          if (rows == 70 && shape.n < 49) continue;
          INFO(to_string(format) << " n " << shape.n << " k " << shape.k << " x "
                                 << dtype_name(activation) << " rows " << rows);
          const bool aligned = rows % 2 == 1 || rows == 16;
          const HostTensor x = activations(random, activation, rows, shape.k, aligned);
          check_linear(x, w, rows % 3 == 0 ? bias : HostTensor(), activation);
        }
      }
    }
  }
}

TEST_CASE("cuda linear: the verb, with the library where it takes the product", "[linear]") {
  Random random(15);
  for (const DType type : kActivations) {
    const HostWeight w = random_weight(random, type, 24, 64);
    const HostTensor bias = random.tensor(DType::kF32, {24});
    const WeightOnDevice device_w(w);
    const OnDevice device_bias(bias);
    for (const int64_t rows : {0, 4, 9, 40}) {
      INFO(dtype_name(type) << " rows " << rows);
      const HostTensor x = random.tensor(type, {rows, 64});
      const OnDevice device_x(x), out(HostTensor(type, {rows, 24}));
      cuda_ops().linear(device_x, device_w, device_bias, out);
      CHECK(first_violation(out.host(), product(x, w.weight, bias, type)) == "");
    }
  }
}

TEST_CASE("cuda linear: more rows and columns than a tile has", "[linear]") {
  Random random(2);
  for (const WeightFormat format : weight_formats()) {
    for (const int32_t block : {32, 16}) {
      if (block == 16 && format.type != DType::kI8 && format.type != DType::kI4x2) continue;
      const HostWeight w = random_weight(random, format.type, 150, 160, block, 0, 0, format.min);
      const HostTensor x = activations(random, DType::kBF16, 140, 160, true);
      INFO(to_string(format) << " block " << block);
      check_linear(x, w, {}, DType::kBF16);
    }
  }
}

TEST_CASE("cuda linear: out of another type than x", "[linear]") {
  Random random(3);
  for (const DType type : {DType::kF32, DType::kF8E4M3}) {
    const HostWeight w = random_weight(random, type, 24, 96);
    for (const int64_t rows : {1, 9, 20}) {
      INFO(dtype_name(type) << " rows " << rows);
      check_linear(activations(random, DType::kBF16, rows, 96, true), w, {}, DType::kF32);
      check_linear(activations(random, DType::kF32, rows, 96, true), w, {}, DType::kBF16);
    }
  }
}

TEST_CASE("cuda linear: scale groups of every size, from anywhere in one", "[linear]") {
  Random random(4);
  for (const WeightFormat format : weight_formats()) {
    if (!has_scales(format.type)) continue;
    for (const int32_t block : {128, 64, 32, 16, 6, 1000}) {
      for (const int32_t col_offset : {0, 32, 16, 8, 2}) {
        if (col_offset >= block) continue;
        const int32_t row_offset = block == 64 ? 5 : 0;
        // 280 columns end inside a group of 16 and inside the four columns' lanes of it.
        const HostWeight w =
            random_weight(random, format.type, 37, 280, block, row_offset, col_offset, format.min);
        for (const DType activation : kActivations) {
          for (const int64_t rows : {2, 10, 18}) {
            INFO(to_string(format) << " block " << block << " offset " << col_offset << " x "
                                   << dtype_name(activation) << " rows " << rows);
            check_linear(activations(random, activation, rows, 280, true), w, {}, activation);
          }
        }
      }
    }
  }
}

TEST_CASE("cuda linear: groups of 16 in tiles of every size, unaligned too", "[linear]") {
  Random random(16);
  for (const DType type : {DType::kI8, DType::kI4x2}) {
    for (const bool min : {false, true}) {
      for (const int64_t k : {176, 150}) {  // 150: rows of the weight begin at odd places
        const HostWeight w = random_weight(random, type, 135, k, 16, 0, 0, min);
        for (const int64_t rows : {1, 16, 40, 70}) {
          INFO(to_string({type, min}) << " k " << k << " rows " << rows);
          check_linear(activations(random, DType::kBF16, rows, k, rows != 40), w, {}, DType::kF32);
        }
      }
    }
  }
}

TEST_CASE("cuda linear: few columns and a long k, in parts", "[linear]") {
  Random random(5);
  for (const WeightFormat format : {WeightFormat{DType::kF32},
                                    {DType::kBF16},
                                    {DType::kF8E4M3},
                                    {DType::kI4x2},
                                    {DType::kI4x2, true},
                                    {DType::kI8, true}}) {
    const DType type = format.type;
    const HostWeight w =
        random_weight(random, type, 19, 2080, type == DType::kI8 ? 16 : 128, 0, 0, format.min);
    const HostTensor bias = random.tensor(DType::kF32, {19});
    for (const DType activation : kActivations) {
      for (const int64_t rows : {1, 5, 12, 18}) {
        INFO(to_string(format) << " x " << dtype_name(activation) << " rows " << rows);
        check_linear(activations(random, activation, rows, 2080, true), w, bias, activation);
      }
    }
    const HostWeight longer = random_weight(random, type, 3, 24576, 128, 0, 0,
                                            format.min);  // for all lanes of gemv, twice
    INFO(to_string(format) << " k 24576");
    check_linear(activations(random, DType::kF32, 2, 24576, true), longer, {}, DType::kF32);
  }
}

TEST_CASE("cuda linear: a weight arrives exactly", "[linear]") {
  // x has ones on the diagonal: out[m, n] is weight(n, m), times its scale, rounded once; and once
  // more with a min where tensor cores are (FMAs may fuse the two).
  Random random(6);
  for (const WeightFormat format : weight_formats()) {
    const DType type = format.type;
    const HostWeight w =
        random_weight(random, type, 32, 64, format.min ? 16 : 32, 0, 0, format.min);
    for (const DType activation : kActivations) {
      if (format.min && activation == DType::kF32) continue;
      for (const int64_t rows : {8, 16, 64}) {
        INFO(to_string(format) << " x " << dtype_name(activation) << " rows " << rows);
        HostTensor x(activation, {rows, 64});
        for (int64_t i = 0; i < rows; ++i) {
          if (activation == DType::kF32) {
            x.view().row<float>(i)[i] = 1;
          } else {
            x.view().row<BF16>(i)[i] = to_bf16(1);
          }
        }
        const OnDevice out(HostTensor(DType::kF32, {rows, 32}));
        own_linear(cuda_device(), scratch(), OnDevice(x), WeightOnDevice(w), {}, out);
        const HostTensor got = out.host();
        int wrong = 0;
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t n = 0; n < 32; ++n) {
            wrong += got.view().row<float>(m)[n] != static_cast<float>(weight_at(w.weight, n, m));
          }
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("cuda linear: a row's bits do not depend on its neighbours or its place", "[linear]") {
  Random random(7);
  for (const WeightFormat format : weight_formats()) {
    const HostWeight w =
        random_weight(random, format.type, 40, 192, format.min ? 16 : 64, 0, 0, format.min);
    const WeightOnDevice device_w(w);
    for (const DType activation : kActivations) {
      for (const std::vector<int64_t>& bucket :
           {std::vector<int64_t>{1, 5, 8}, {9, 16}, {20, 32}, {33, 64}}) {
        // Row 3 of 8 and so on: the same values first, then others around it; NaN among those.
        HostTensor all = random.tensor(activation, {64, 192});
        std::vector<std::byte> first;
        for (const int64_t rows : bucket) {
          if (activation == DType::kF32 && rows == 1) continue;  // gemv: a form of its own
          HostTensor x = random.tensor(activation, {rows, 192}, rows == bucket[0] ? 1.0f : NAN);
          const int64_t place = rows - 1, row_bytes = 192 * dtype_size(activation);
          std::memcpy(x.memory().data() + place * row_bytes, all.memory().data(), row_bytes);
          const OnDevice out(HostTensor(activation, {rows, 40}));
          own_linear(cuda_device(), scratch(), OnDevice(x), device_w, {}, out);
          const std::vector<std::byte> bytes = out.host().bytes();
          const std::vector<std::byte> mine(bytes.end() - 40 * dtype_size(activation), bytes.end());
          if (first.empty()) first = mine;
          INFO(to_string(format) << " x " << dtype_name(activation) << " rows " << rows);
          CHECK((mine == first));
        }
      }
    }
  }
}

TEST_CASE("cuda head_linear: one product per head, strided views", "[linear]") {
  Random random(8);
  for (const DType activation : kActivations) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      for (const Shape shape : {Shape{26, 37}, {40, 64}}) {
        for (const int64_t rows : {0, 1, 5, 16, 40}) {
          INFO(dtype_name(activation)
               << " " << dtype_name(type) << " k " << shape.k << " rows " << rows);
          const int64_t heads = 3, n = shape.n, k = shape.k, gap = k % 8 == 0 ? 8 : 5;
          const HostTensor wide_x = random.tensor(activation, {rows, heads, k + gap});
          const HostTensor w = random.tensor(type, {heads, n, k});
          const OnDevice device_x(wide_x), device_w(w);
          const auto inner = [](const Tensor& t, int64_t begin, int64_t size) {
            return t.slice(2, begin, begin + size);
          };
          const auto head_of = [](Tensor t, int64_t h) {
            t = t.slice(1, h, h + 1);
            t.rank = 2;
            t.shape[1] = t.shape[2];
            t.stride[1] = 1;
            return t;
          };
          for_each_schedule([&] {
            const OnDevice out(HostTensor(activation, {rows, heads, n + 4}));
            cuda_ops().head_linear(inner(device_x, gap, k), device_w, inner(out, 4, n));
            const HostTensor got = out.host();
            for (int64_t h = 0; h < heads; ++h) {
              const Weight head{.data = w.view().slice(0, h, h + 1).reshape({n, k})};
              CHECK(first_violation(
                        head_of(inner(got, 4, n), h),
                        product(head_of(inner(wide_x, gap, k), h), head, {}, activation)) == "");
            }
          });
        }
      }
    }
  }
}

namespace {

struct Experts {
  std::vector<HostWeight> host;
  std::vector<WeightOnDevice> device;
  std::vector<Weight> weights;

  Experts(Random& random, WeightFormat format, int count, int64_t n, int64_t k, int32_t block) {
    for (int e = 0; e < count; ++e) {
      host.push_back(random_weight(random, format.type, n, k, block, 0, 0, format.min));
    }
    for (const HostWeight& w : host) device.emplace_back(w);
    for (const WeightOnDevice& w : device) weights.push_back(w);
  }
};

void check_grouped(const HostTensor& x, const Experts& experts, const std::vector<int32_t>& offsets,
                   DType out_type) {
  const int64_t rows = x.view().dim(0), n = experts.weights[0].n();
  const auto count = static_cast<int64_t>(experts.weights.size());
  const OnDevice device_x(x), device_offsets(HostTensor::ints({count + 1}, offsets));
  Random random(9);
  const HostTensor before = random.tensor(out_type, {rows, n});
  std::vector<Expected> expected;
  for (int64_t e = 0; e < count; ++e) {
    expected.push_back(product(x.view().slice(0, offsets[e], offsets[e + 1]),
                               experts.host[e].weight, {}, out_type));
  }
  for_each_schedule([&] {
    const OnDevice out(before);
    cuda_ops().grouped_linear(device_x, experts.weights, device_offsets, out);
    const HostTensor got = out.host();
    for (int64_t e = 0; e < count; ++e) {
      INFO("expert " << e);
      CHECK(first_violation(got.view().slice(0, offsets[e], offsets[e + 1]), expected[e]) == "");
    }
    // Rows of no expert stay as they were.
    CHECK(values(got.view().slice(0, offsets[count], rows)) ==
          values(before.view().slice(0, offsets[count], rows)));
  });
}

}  // namespace

TEST_CASE("cuda grouped_linear: rows by expert, empty experts, rows of none", "[linear]") {
  Random random(10);
  for (const WeightFormat format : weight_formats()) {
    const Experts experts(random, format, 6, 50, 96, format.min ? 16 : 32);
    for (const DType activation : kActivations) {
      for (const std::vector<int32_t>& offsets : {std::vector<int32_t>{0, 0, 1, 1, 10, 20, 20},
                                                  {0, 0, 0, 0, 0, 0, 0},
                                                  {0, 4, 8, 9, 9, 9, 23},
                                                  {0, 23, 23, 23, 23, 23, 23}}) {
        INFO(to_string(format) << " x " << dtype_name(activation) << " last " << offsets[1]);
        HostTensor x = random.tensor(activation, {24, 96});
        check_grouped(x, experts, offsets, activation);
      }
    }
  }
}

TEST_CASE("cuda grouped_linear: more rows, odd shapes", "[linear]") {
  Random random(11);
  for (const WeightFormat format : weight_formats()) {
    for (const Shape shape : {Shape{33, 70}, {140, 64}}) {
      const Experts experts(random, format, 3, shape.n, shape.k, 64);
      for (const DType activation : kActivations) {
        for (const std::vector<int32_t>& offsets :
             {std::vector<int32_t>{0, 3, 30, 33}, {0, 70, 70, 101}, {0, 1, 150, 290}}) {
          if (offsets[3] == 290 && (format.type == DType::kF16 || shape.k == 70)) continue;
          INFO(to_string(format) << " n " << shape.n << " x " << dtype_name(activation) << " rows "
                                 << offsets[3]);
          const HostTensor x = random.tensor(activation, {offsets[3] + 2, shape.k});
          check_grouped(x, experts, offsets, activation);
        }
      }
    }
  }
}

TEST_CASE("cuda grouped_linear: tables follow their weights, graphs follow the offsets",
          "[linear]") {
  Random random(12);
  const Experts experts(random, {DType::kI8, true}, 4, 24, 64, 32);
  const HostTensor x = random.tensor(DType::kBF16, {10, 64});
  const OnDevice device_x(x), out(HostTensor(DType::kBF16, {10, 24}));
  OnDevice offsets(HostTensor::ints({3}, {0, 2, 10}));
  std::vector<Weight> pair = {experts.weights[0], experts.weights[1]};
  const auto check = [&](const std::vector<int32_t>& at, int first, int second) {
    const HostTensor got = out.host();
    const int used[2] = {first, second};
    for (int e = 0; e < 2; ++e) {
      CHECK(first_violation(got.view().slice(0, at[e], at[e + 1]),
                            product(x.view().slice(0, at[e], at[e + 1]),
                                    experts.host[used[e]].weight, {}, DType::kBF16)) == "");
    }
  };
  const auto multiply = [&] { cuda_ops().grouped_linear(device_x, pair, offsets, out); };
  const auto first_use = [&] { cuda_device().capture(multiply); };
  CHECK_THROWS_AS(first_use(), Bug);
  multiply();
  check({0, 2, 10}, 0, 1);
  // A graph replays with other offsets.
  const std::unique_ptr<DeviceGraph> graph = cuda_device().capture(multiply);
  REQUIRE(graph != nullptr);
  const std::vector<int32_t> moved = {0, 9, 10};
  cuda_device().copy_to_device(offsets.view().data, moved.data(), 12);
  graph->launch();
  check(moved, 0, 1);
  // Other weights in the same vector.
  pair[0] = experts.weights[2];
  pair[1] = experts.weights[3];
  multiply();
  check(moved, 2, 3);
  graph->launch();
  check(moved, 2, 3);
  // And experts that do not belong together.
  pair[1].min = {};
  CHECK_THROWS_AS(multiply(), Bug);
  pair[1] = experts.weights[3];
  pair[1].data = pair[1].data.slice(0, 0, 20);
  CHECK_THROWS_AS(multiply(), Bug);
}

TEST_CASE("cuda dequantize: exact to F32, rounded once to BF16", "[linear]") {
  Random random(13);
  for (const WeightFormat format : weight_formats()) {
    const DType type = format.type;
    for (const int32_t col_offset : {0, type == DType::kI4x2 ? 4 : 3}) {
      INFO(to_string(format) << " col_offset " << col_offset);
      const int64_t k = type == DType::kI4x2 ? 142 : 141;
      const HostWeight w = random_weight(random, type, 20, k, 32, 7, col_offset, format.min);
      const WeightOnDevice device_w(w);
      for_each_schedule([&] {
        const OnDevice exact(HostTensor::strided(DType::kF32, 20, k, 3)),
            rounded(HostTensor(DType::kBF16, {20, k}));
        cuda_ops().dequantize(device_w, exact);
        cuda_ops().dequantize(device_w, rounded);
        const HostTensor floats = exact.host(), halves = rounded.host();
        int wrong = 0;
        for (int64_t i = 0; i < 20; ++i) {
          for (int64_t j = 0; j < k; ++j) {
            const auto value = static_cast<float>(weight_at(w.weight, i, j));
            wrong += floats.view().row<float>(i)[j] != value;
            wrong += halves.view().row<BF16>(i)[j].bits != to_bf16(value).bits;
          }
        }
        CHECK(wrong == 0);
      });
    }
  }
}

TEST_CASE("cuda products: shapes that do not fit", "[linear]") {
  Random random(14);
  const HostWeight w = random_weight(random, DType::kBF16, 8, 16);
  const WeightOnDevice device_w(w);
  const OnDevice x(random.tensor(DType::kBF16, {2, 24})), out(HostTensor(DType::kBF16, {2, 8}));
  CHECK_THROWS_AS(cuda_ops().linear(x, device_w, {}, out), Bug);
  CHECK_THROWS_AS(cuda_ops().linear(x.view().slice(1, 0, 16), device_w, {}, x), Bug);
  CHECK_THROWS_AS(cuda_ops().linear(x.view().slice(1, 0, 16), device_w,
                                    OnDevice(random.tensor(DType::kF32, {7})), out),
                  Bug);
  CHECK_THROWS_AS(cuda_ops().head_linear(x, device_w.weight().data, out), Bug);
  CHECK_THROWS_AS(cuda_ops().dequantize(device_w, out), Bug);
}

}  // namespace shoal::test
