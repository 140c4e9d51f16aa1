// The three linear layers, every rank's share in turn, against the unsharded product in double.
#include "parallel/linear.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "parallel/self/self_group.h"
#include "tests/parallel/support/fake_weights.h"
#include "tests/parallel/support/values.h"

namespace shoal::test {
namespace {

constexpr int64_t kTokens = 3;

const std::unique_ptr<Device> cpu = make_cpu_device();  // of the weights

// One rank's view of a layer; the collectives are not used by it.
struct OneRank {
  std::unique_ptr<Device> device = make_cpu_device();
  std::unique_ptr<Ops> ops = make_cpu_ops(1);
  Workspace workspace{*device, size_t{1} << 20};
  SelfCollectives comm{*device};
  ExecContext ctx{*ops, workspace, comm};
};

struct Product {
  std::vector<double> value;  // [T, n]
  std::vector<double> bound;  // [T, n]: sum of |x w|, what rounding errors are proportional to
};

Product exact_product(const FakeWeights& weights, const std::string& name, int64_t n, int64_t k,
                      const std::vector<float>& x, bool bias) {
  Product product;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t i = 0; i < n; ++i) {
      double sum = bias ? weights.vector_value(name + ".bias", i) : 0.0;
      double bound = std::abs(sum);
      for (int64_t j = 0; j < k; ++j) {
        const double term = x[t * k + j] * weights.value(name, i, j);
        sum += term;
        bound += std::abs(term);
      }
      product.value.push_back(sum);
      product.bound.push_back(bound);
    }
  }
  return product;
}

// Adding k products in float in any order errs by at most about (k + 2) 2^-24 of the sum of their
// sizes (Higham, Accuracy and Stability of Numerical Algorithms, 3.1; + 2: scale and bias).
void check_close(const Product& expected, const std::vector<double>& actual, int64_t k) {
  REQUIRE(actual.size() == expected.value.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    CAPTURE(i);
    REQUIRE(std::abs(actual[i] - expected.value[i]) <=
            static_cast<double>(k + 2) * 0x1p-24 * expected.bound[i]);
  }
}

struct Case {
  int64_t n, k;
  bool fp8;
};

// 200 and 300 are no multiples of 128: with FP8, ranks begin inside blocks. 6 is less than a unit.
const Case kCases[] = {{200, 300, false}, {200, 300, true}, {256, 384, true}, {64, 16, false},
                       {6, 10, false},    {1, 1, false},    {130, 258, true}};

std::string add(FakeWeights& weights, const Case& c) {
  const std::string name = "layer";
  if (c.fp8) {
    weights.add_fp8(name, c.n, c.k, 128);
  } else {
    weights.add_f32(name, c.n, c.k);
  }
  weights.add_vector(name + ".bias", c.n);
  return name;
}

TEST_CASE("replicated: every rank has the whole product") {
  for (const Case& c : kCases) {
    for (bool bias : {false, true}) {
      CAPTURE(c.n, c.k, c.fp8, bias);
      FakeWeights weights(*cpu);
      const std::string name = add(weights, c);
      std::vector<float> x = random_values(7, kTokens * c.k);
      OneRank rank;
      ReplicatedLinear layer;
      layer.load(weights, name, c.n, c.k, bias);
      const Tensor out = layer.forward(rank.ctx, view(x, {kTokens, c.k}));
      const std::vector<double> actual(out.as<float>(), out.as<float>() + kTokens * c.n);
      check_close(exact_product(weights, name, c.n, c.k, x, bias), actual, c.k);
    }
  }
}

TEST_CASE("column parallel: the ranks' outputs side by side are the product") {
  for (const Case& c : kCases) {
    for (int ranks = 1; ranks <= 5; ++ranks) {
      for (bool bias : {false, true}) {
        CAPTURE(c.n, c.k, c.fp8, ranks, bias);
        FakeWeights weights(*cpu);
        const std::string name = add(weights, c);
        std::vector<float> x = random_values(8, kTokens * c.k);
        std::vector<double> actual(kTokens * c.n);
        for (const Range& rows : split_evenly(c.n, ranks, column_unit(c.n))) {
          OneRank rank;
          ColumnParallelLinear layer;
          layer.load(weights, name, c.n, c.k, rows, bias);
          const Tensor out = layer.forward(rank.ctx, view(x, {kTokens, c.k}));
          REQUIRE((out.dim(0) == kTokens && out.dim(1) == rows.size()));
          for (int64_t t = 0; t < kTokens; ++t) {
            for (int64_t i = 0; i < rows.size(); ++i) {
              actual[t * c.n + rows.begin + i] = out.row<float>(t)[i];
            }
          }
        }
        check_close(exact_product(weights, name, c.n, c.k, x, bias), actual, c.k);
        CHECK(weights.elements_read() == c.n * c.k + (bias ? c.n : 0));
      }
    }
  }
}

TEST_CASE("row parallel: the ranks' partial outputs add up to the product") {
  for (const Case& c : kCases) {
    for (int ranks = 1; ranks <= 5; ++ranks) {
      CAPTURE(c.n, c.k, c.fp8, ranks);
      FakeWeights weights(*cpu);
      const std::string name = add(weights, c);
      std::vector<float> x = random_values(9, kTokens * c.k);
      std::vector<double> actual(kTokens * c.n, 0.0);
      for (const Range& cols : split_evenly(c.k, ranks, column_unit(c.k))) {
        OneRank rank;
        RowParallelLinear layer;
        layer.load(weights, name, c.n, c.k, cols);
        std::vector<float> own;  // [T, cols]
        for (int64_t t = 0; t < kTokens; ++t) {
          own.insert(own.end(), x.begin() + t * c.k + cols.begin, x.begin() + t * c.k + cols.end);
        }
        const Tensor out = layer.forward(rank.ctx, view(own, {kTokens, cols.size()}));
        REQUIRE((out.dim(0) == kTokens && out.dim(1) == c.n));
        for (int64_t i = 0; i < kTokens * c.n; ++i) actual[i] += out.as<float>()[i];
      }
      check_close(exact_product(weights, name, c.n, c.k, x, false), actual, c.k);
      CHECK(weights.elements_read() == c.n * c.k);
    }
  }
}

TEST_CASE("no tokens: an empty output of the right width") {
  FakeWeights weights(*cpu);
  weights.add_f32("layer", 12, 8);
  OneRank rank;
  ReplicatedLinear layer;
  layer.load(weights, "layer", 12, 8);
  std::vector<float> none;
  const Tensor out = layer.forward(rank.ctx, view(none, {0, 8}));
  CHECK((out.dim(0) == 0 && out.dim(1) == 12));
}

TEST_CASE("an input of the wrong width is a bug") {
  FakeWeights weights(*cpu);
  weights.add_f32("layer", 12, 8);
  OneRank rank;
  ReplicatedLinear layer;
  layer.load(weights, "layer", 12, 8);
  std::vector<float> x(14);
  CHECK_THROWS_AS(layer.forward(rank.ctx, view(x, {2, 7})), Bug);
}

}  // namespace
}  // namespace shoal::test
