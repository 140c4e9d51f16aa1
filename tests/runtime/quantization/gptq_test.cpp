#include "runtime/quantization/gptq.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <random>

#include "runtime/quantization/decode.h"
#include "runtime/quantization/inverse_factor.h"
#include "tests/runtime/quantization/stored_bytes.h"

namespace shoal {
namespace {

struct Problem {
  int64_t n, k, inputs = 400;
  std::vector<float> weights, x, hessian;  // [n, k], [inputs, k], [k, k]
  explicit Problem(int64_t n = 24, int64_t k = 96) : n(n), k(k) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    weights.resize(n * k);
    for (float& w : weights) w = normal(random);
    // Inputs that go together: what calibration has over plain rounding.
    x.resize(inputs * k);
    for (int64_t t = 0; t < inputs; ++t) {
      float common = 0;
      for (int64_t j = 0; j < k; ++j) {
        common = 0.9f * common + normal(random);
        x[t * k + j] = common;
      }
    }
    hessian.resize(k * k);
    for (int64_t t = 0; t < inputs; ++t) {
      for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j < k; ++j) hessian[i * k + j] += x[t * k + i] * x[t * k + j];
      }
    }
  }
  double output_error(const StoredWeight& quantized) const {
    std::vector<float> values(n * k);
    decode_weight(quantized, {0, n}, {0, k}, values.data());
    double error = 0;
    for (int64_t t = 0; t < inputs; ++t) {
      for (int64_t i = 0; i < n; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < k; ++j) sum += (values[i * k + j] - weights[i * k + j]) * x[t * k + j];
        error += sum * sum;
      }
    }
    return error;
  }
};

TEST_CASE("the factor is that of the inverse, with any number of threads") {
  for (const int64_t k : {int64_t{1}, int64_t{63}, int64_t{64}, int64_t{200}}) {
    std::mt19937 random(static_cast<uint32_t>(k));
    std::normal_distribution<double> normal;
    std::vector<double> x(2 * k * k), h(k * k);
    for (double& v : x) v = normal(random);
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        for (int64_t t = 0; t < 2 * k; ++t) h[i * k + j] += x[t * k + i] * x[t * k + j];
      }
    }
    const std::vector<float> u = inverse_factor(h, k, 1);
    REQUIRE(u.size() == h.size());
    CHECK(u == inverse_factor(h, k, 3));
    double worst = 0;  // of H U^T U = 1
    std::vector<double> inverse(k * k);
    for (int64_t l = 0; l < k; ++l) {
      for (int64_t i = 0; i < k; ++i) {
        if (l < i) CHECK(u[i * k + l] == 0);
        for (int64_t j = 0; j < k; ++j) inverse[i * k + j] += double{u[l * k + i]} * u[l * k + j];
      }
    }
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        double sum = 0;
        for (int64_t l = 0; l < k; ++l) sum += h[i * k + l] * inverse[l * k + j];
        worst = std::max(worst, std::abs(sum - (i == j)));
      }
    }
    CHECK(worst < 1e-3);
  }
  CHECK(inverse_factor({1, 0, 0, -1}, 2, 1).empty());
  CHECK(inverse_factor({NAN}, 1, 1).empty());
}

TEST_CASE("what is known of inputs: columns by their squares, and nothing of none") {
  const Problem p;
  const InputStatistics inputs = input_statistics(p.hessian, p.k, 2);
  REQUIRE(inputs.factor.size() == p.hessian.size());
  std::vector<int32_t> sorted = inputs.order;
  std::sort(sorted.begin(), sorted.end());
  for (int64_t j = 0; j < p.k; ++j) CHECK(sorted[j] == j);
  for (int64_t j = 1; j < p.k; ++j) {
    CHECK(inputs.importance[inputs.order[j - 1]] >= inputs.importance[inputs.order[j]]);
  }
  CHECK(input_statistics(std::vector<float>(p.k * p.k), p.k, 1).factor.empty());
  CHECK(input_statistics(std::vector<float>(p.k * p.k, INFINITY), p.k, 1).factor.empty());
}

TEST_CASE("outputs for the inputs seen change less than with plain rounding, the same with any threads") {
  const Problem p;
  const InputStatistics inputs = input_statistics(p.hessian, p.k, 1);
  for (const char* name : {"int4-gptq", "int4-gptq-g32", "int4-gptq-asym", "int4-gptq-asym-g32"}) {
    const QuantizationScheme scheme = parse_scheme("-q", name, true);
    const auto calibrated = gptq_quantize(p.weights, p.n, p.k, inputs, scheme, "w", 3);
    const auto plain = gptq_quantize(p.weights, p.n, p.k, {}, scheme, "w", 1);
    INFO(name << ": " << p.output_error(*calibrated) << " against " << p.output_error(*plain));
    CHECK(p.output_error(*calibrated) < 0.6 * p.output_error(*plain));
    const auto again = gptq_quantize(p.weights, p.n, p.k, inputs, scheme, "w", 1);
    CHECK(test::read_all(*calibrated) == test::read_all(*again));
  }
}

TEST_CASE("rows of several blocks of columns, and an odd number of them") {
  Problem p(/*n=*/37, /*k=*/320);
  const InputStatistics inputs = input_statistics(p.hessian, p.k, 2);
  const QuantizationScheme scheme = parse_scheme("-q", "int4-gptq-asym-g32", true);
  const auto calibrated = gptq_quantize(p.weights, p.n, p.k, inputs, scheme, "w", 2);
  const auto plain = gptq_quantize(p.weights, p.n, p.k, {}, scheme, "w", 2);
  CHECK(p.output_error(*calibrated) < 0.6 * p.output_error(*plain));
}

}  // namespace
}  // namespace shoal
