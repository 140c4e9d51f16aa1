// linear, head_linear, grouped_linear, dequantize against the reference.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

#include "tests/kernels/support/reference.h"
#include "tests/kernels/support/test_data.h"

namespace shoal::test {
namespace {

const std::vector<int64_t> kRows = {0, 1, 2, 3, 4, 5, 16, 33};

struct Shape {
  int64_t n, k;
};
// Odd and even, below and above a vector, a tile, a panel of rows and a panel of columns.
const std::vector<Shape> kShapes = {{1, 1},    {5, 3},    {7, 16},   {24, 33},
                                    {49, 130}, {100, 64}, {13, 1061}};

}  // namespace

TEST_CASE("linear: every type and shape, strided, with and without bias", "[matmul]") {
  for_each_target([](const std::string& name) {
    Random random(1);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const WeightFormat format : weight_formats()) {
      for (const Shape shape : kShapes) {
        if (format.type == DType::kI4x2 && shape.k % 2 == 1) continue;
        const HostWeight w =
            random_weight(random, format.type, shape.n, shape.k, 128, 0, 0, format.min);
        for (const int64_t rows : kRows) {
          INFO(name << " " << to_string(format) << " n " << shape.n << " k " << shape.k << " rows "
                    << rows);
          HostTensor x = HostTensor::strided(DType::kF32, rows, shape.k, 3);
          random.fill(x);
          HostTensor out = HostTensor::strided(DType::kF32, rows, shape.n, 2);
          ops->linear(x, w.weight, {}, out);
          CHECK(first_violation(out, linear(x, w.weight, {})) == "");
          const HostTensor bias = random.tensor(DType::kF32, {shape.n});
          ops->linear(x, w.weight, bias, out);
          CHECK(first_violation(out, linear(x, w.weight, bias)) == "");
        }
      }
    }
  });
}

TEST_CASE("linear: FP8 shards that begin inside a scale block", "[matmul]") {
  for_each_target([](const std::string& name) {
    Random random(2);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const int32_t block : {128, 32, 5}) {
      for (const int32_t row_offset : {0, 1, 4}) {
        for (const int32_t col_offset : {0, 3, 4}) {
          const HostWeight w =
              random_weight(random, DType::kF8E4M3, 70, 300, block, row_offset, col_offset);
          for (const int64_t rows : {1, 3, 9}) {
            INFO(name << " block " << block << " offsets " << row_offset << " " << col_offset
                      << " rows " << rows);
            const HostTensor x = random.tensor(DType::kF32, {rows, 300});
            HostTensor out(DType::kF32, {rows, 70});
            ops->linear(x, w.weight, {}, out);
            CHECK(first_violation(out, linear(x, w.weight, {})) == "");
          }
        }
      }
    }
  });
}

TEST_CASE("linear: groups of integers, of any length, from anywhere in one", "[matmul]") {
  for_each_target([](const std::string& name) {
    Random random(7);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const WeightFormat format : weight_formats()) {
      if (format.type != DType::kI8 && format.type != DType::kI4x2) continue;
      // The last two: one group over the whole row, and one that a shard cuts. 1150 columns are
      // more than a panel and end inside a vector.
      for (const int32_t block : {128, 64, 32, 16, 6, 1150, 2400}) {
        for (const int32_t col_offset : {0, 2, 16, 48}) {
          if (col_offset >= block) continue;
          const HostWeight w =
              random_weight(random, format.type, 29, 1150, block, 0, col_offset, format.min);
          for (const int64_t rows : {1, 2, 3, 4, 7}) {
            INFO(name << " " << to_string(format) << " block " << block << " offset " << col_offset
                      << " rows " << rows);
            const HostTensor x = random.tensor(DType::kF32, {rows, 1150});
            HostTensor out(DType::kF32, {rows, 29});
            ops->linear(x, w.weight, {}, out);
            CHECK(first_violation(out, linear(x, w.weight, {})) == "");
          }
        }
      }
    }
  });
}

TEST_CASE("linear: a min counts for every column of its group and for no other", "[matmul]") {
  // Numbers are 0: out is the sum over groups of min * (sum of x over the group), here exact.
  for_each_target([](const std::string& name) {
    Random random(9);
    const std::unique_ptr<Ops> ops = make_cpu_ops(1);
    for (const DType type : {DType::kI8, DType::kI4x2}) {
      for (const int32_t col_offset : {0, 4, 16}) {
        HostWeight w = random_weight(random, type, 3, 70, 32, 0, col_offset, true);
        std::fill(w.data.memory().begin(), w.data.memory().end(), std::byte{0});
        const int64_t groups = w.weight.min.dim(1);
        for (int64_t i = 0; i < 3 * groups; ++i) {
          w.min.view().as<float>()[i] = static_cast<float>(random.below(200) - 100);
        }
        for (const int64_t rows : {1, 6}) {
          INFO(name << " " << dtype_name(type) << " offset " << col_offset << " rows " << rows);
          HostTensor x(DType::kF32, {rows, 70}), out(DType::kF32, {rows, 3});
          for (int64_t i = 0; i < rows * 70; ++i) {
            x.view().as<float>()[i] = static_cast<float>(random.below(100));
          }
          ops->linear(x, w.weight, {}, out);
          for (int64_t t = 0; t < rows; ++t) {
            for (int64_t n = 0; n < 3; ++n) {
              float sum = 0;
              for (int64_t k = 0; k < 70; ++k) {
                sum +=
                    x.view().row<float>(t)[k] * w.min.view().row<float>(n)[(k + col_offset) / 32];
              }
              CHECK(out.view().row<float>(t)[n] == sum);
            }
          }
        }
      }
    }
  });
}

TEST_CASE("check_weight: refuses scales that do not cover the weight", "[matmul]") {
  Random random(8);
  const HostWeight good = random_weight(random, DType::kI4x2, 6, 96, 32, 0, 4);
  CHECK_NOTHROW(check_weight(good.weight));
  const auto refused = [&](auto change) {
    Weight w = good.weight;
    change(w);
    CHECK_THROWS_AS(check_weight(w), Bug);
  };
  refused([](Weight& w) { w.scale = w.scale.slice(1, 0, w.scale.dim(1) - 1); });
  refused([](Weight& w) { w.scale = w.scale.slice(0, 0, w.scale.dim(0) - 1); });
  refused([](Weight& w) { w.scale = {}; });
  refused([](Weight& w) { w.scale.dtype = DType::kBF16; });
  refused([](Weight& w) { w.block_cols = 0; });
  refused([](Weight& w) { w.col_offset = 32; });
  refused([](Weight& w) { w.row_offset = 1; });
  refused([](Weight& w) { w.col_offset = 3; });  // inside a byte
  refused([](Weight& w) { w.block_cols = 31; });
  refused([](Weight& w) { w.data.dtype = DType::kI32; });
  refused([](Weight& w) { w.data.rank = 1; });

  const HostWeight with_min = random_weight(random, DType::kI8, 6, 96, 32, 0, 4, true);
  CHECK_NOTHROW(check_weight(with_min.weight));
  const auto min_refused = [&](auto change) {
    Weight w = with_min.weight;
    change(w);
    CHECK_THROWS_AS(check_weight(w), Bug);
  };
  min_refused([](Weight& w) { w.min = w.min.slice(1, 0, 2); });
  min_refused([](Weight& w) { w.min = w.min.slice(0, 0, 5); });
  min_refused([](Weight& w) { w.min.stride[0] += 1; });
  min_refused([](Weight& w) { w.min.dtype = DType::kBF16; });
  min_refused([](Weight& w) { w.data.dtype = DType::kF8E4M3; });
}

TEST_CASE("linear: weight rows may lie apart", "[matmul]") {
  Random random(3);
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const DType type : {DType::kF32, DType::kBF16}) {
    HostTensor data = HostTensor::strided(type, 30, 40, 7);
    random.fill(data);
    const Weight w{.data = data};
    for (const int64_t rows : {1, 8}) {
      const HostTensor x = random.tensor(DType::kF32, {rows, 40});
      HostTensor out(DType::kF32, {rows, 30});
      ops->linear(x, w, {}, out);
      CHECK(first_violation(out, linear(x, w, {})) == "");
    }
  }
}

TEST_CASE("head_linear: one product per head, strided views", "[matmul]") {
  for_each_target([](const std::string& name) {
    Random random(4);
    const std::unique_ptr<Ops> ops = make_cpu_ops(3);
    for (const DType type : {DType::kF32, DType::kBF16}) {
      for (const int64_t rows : {0, 1, 2, 5, 17}) {
        INFO(name << " " << dtype_name(type) << " rows " << rows);
        const int64_t heads = 3, n = 26, k = 37;
        HostTensor wide_x = random.tensor(DType::kF32, {rows, heads, k + 5});
        const Tensor x = wide_x.view().slice(2, 2, 2 + k);
        const HostTensor w = random.tensor(type, {heads, n, k});
        HostTensor wide_out(DType::kF32, {rows, heads, n + 4});
        const Tensor out = wide_out.view().slice(2, 4, 4 + n);
        ops->head_linear(x, w, out);
        for (int64_t h = 0; h < heads; ++h) {
          Tensor head_x = x.slice(1, h, h + 1), head_out = out.slice(1, h, h + 1);
          head_x.rank = head_out.rank = 2;
          head_x.shape[1] = k;
          head_out.shape[1] = n;
          head_x.stride[1] = head_out.stride[1] = 1;
          const Weight head{.data = w.view().slice(0, h, h + 1).reshape({n, k})};
          CHECK(first_violation(head_out, linear(head_x, head, {})) == "");
        }
      }
    }
  });
}

TEST_CASE("grouped_linear: rows by expert, empty experts, no rows at all", "[matmul]") {
  for_each_target([](const std::string& name) {
    Random random(5);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const WeightFormat format : weight_formats()) {
      std::vector<HostWeight> kept;
      std::vector<Weight> experts;
      for (int e = 0; e < 6; ++e) {
        kept.push_back(random_weight(random, format.type, 50, 70, 32, 0, 0, format.min));
        experts.push_back(kept.back().weight);
      }
      for (const std::vector<int32_t>& offsets : {std::vector<int32_t>{0, 0, 1, 1, 10, 33, 33},
                                                  {0, 0, 0, 0, 0, 0, 0},
                                                  {0, 4, 8, 9, 9, 9, 33},
                                                  {0, 33, 33, 33, 33, 33, 33}}) {
        INFO(name << " " << to_string(format));
        const HostTensor x = random.tensor(DType::kF32, {33, 70});
        HostTensor out = random.tensor(DType::kF32, {33, 50});
        const std::vector<double> before = values(out);
        ops->grouped_linear(x, experts, HostTensor::ints({7}, offsets), out);
        for (int e = 0; e < 6; ++e) {
          CHECK(first_violation(
                    out.view().slice(0, offsets[e], offsets[e + 1]),
                    linear(x.view().slice(0, offsets[e], offsets[e + 1]), experts[e], {})) == "");
        }
        if (offsets[6] == 0) CHECK(values(out) == before);
      }
    }
  });
}

TEST_CASE("dequantize: exact to F32, rounded once to BF16", "[matmul]") {
  for_each_target([](const std::string& name) {
    Random random(6);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const WeightFormat format : weight_formats()) {
      for (const int32_t block : {16, 32, 160}) {
        for (const int32_t col_offset : {0, format.type == DType::kI4x2 ? 4 : 3}) {
          INFO(name << " " << to_string(format) << " block " << block << " offset " << col_offset);
          const int64_t k = format.type == DType::kI4x2 ? 142 : 141;
          const HostWeight w =
              random_weight(random, format.type, 20, k, block, 7, col_offset, format.min);
          HostTensor exact(DType::kF32, {20, k}), rounded(DType::kBF16, {20, k});
          ops->dequantize(w.weight, exact);
          ops->dequantize(w.weight, rounded);
          int wrong = 0;
          for (int64_t i = 0; i < 20; ++i) {
            for (int64_t j = 0; j < k; ++j) {
              const auto value = static_cast<float>(weight_at(w.weight, i, j));
              wrong += exact.view().row<float>(i)[j] != value;
              wrong += rounded.view().row<BF16>(i)[j].bits != to_bf16(value).bits;
            }
          }
          CHECK(wrong == 0);
        }
      }
    }
  });
}

TEST_CASE("dequantize: every code of INT8 and INT4", "[matmul]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    const std::unique_ptr<Ops> ops = make_cpu_ops(1);
    HostTensor bytes(DType::kI8, {1, 256}), scale(DType::kF32, {1, 16}), min(DType::kF32, {1, 16});
    for (int i = 0; i < 256; ++i) bytes.view().as<uint8_t>()[i] = static_cast<uint8_t>(i);
    for (int i = 0; i < 16; ++i) {
      scale.view().as<float>()[i] = 0.25f;
      min.view().as<float>()[i] = 3;
    }
    HostTensor out(DType::kF32, {1, 256}), pairs(DType::kF32, {1, 512});
    ops->dequantize({.data = bytes, .scale = scale, .min = min, .block_rows = 1, .block_cols = 16},
                    out);
    const Tensor packed(bytes.view().data, DType::kI4x2, {1, 256});
    ops->dequantize({.data = packed, .scale = scale, .block_rows = 1, .block_cols = 32}, pairs);
    int wrong = 0;
    for (int i = 0; i < 256; ++i) {
      const auto number = [](int bits, int sign) {
        return static_cast<float>(bits < sign ? bits : bits - 2 * sign);
      };
      wrong += out.view().as<float>()[i] != number(i, 128) * 0.25f + 3;
      wrong += pairs.view().as<float>()[2 * i] != number(i & 15, 8) * 0.25f;
      wrong += pairs.view().as<float>()[2 * i + 1] != number(i >> 4, 8) * 0.25f;
    }
    CHECK(wrong == 0);
  });
}

TEST_CASE("dequantize: every finite FP8 and every F16 code", "[matmul]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    const std::unique_ptr<Ops> ops = make_cpu_ops(1);
    HostTensor codes(DType::kF8E4M3, {1, 256}), scale(DType::kF32, {1, 2}),
        out(DType::kF32, {1, 256});
    for (int i = 0; i < 256; ++i) codes.view().as<uint8_t>()[i] = static_cast<uint8_t>(i);
    scale.view().as<float>()[0] = scale.view().as<float>()[1] = 1;
    ops->dequantize({.data = codes, .scale = scale, .block_rows = 128, .block_cols = 128}, out);
    for (int i = 0; i < 256; ++i) {
      if ((i & 0x7f) == 0x7f) continue;  // NaN: a checkpoint with one is refused or wrong anyway
      CHECK(std::bit_cast<uint32_t>(out.view().as<float>()[i]) ==
            std::bit_cast<uint32_t>(to_float(codes.view().as<F8E4M3>()[i])));
    }
    HostTensor halves(DType::kF16, {1, 65536}), floats(DType::kF32, {1, 65536});
    for (int i = 0; i < 65536; ++i) halves.view().as<uint16_t>()[i] = static_cast<uint16_t>(i);
    ops->dequantize({.data = halves}, floats);
    int wrong = 0;
    for (int i = 0; i < 65536; ++i) {
      const float expected = to_float(halves.view().as<F16>()[i]);
      const float got = floats.view().as<float>()[i];
      wrong += std::isnan(expected) ? !std::isnan(got) : got != expected;
    }
    CHECK(wrong == 0);
  });
}

}  // namespace shoal::test
