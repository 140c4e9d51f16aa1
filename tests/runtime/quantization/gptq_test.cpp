#include "runtime/quantization/gptq.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <random>

#include "runtime/quantization/decode.h"
#include "tests/runtime/quantization/stored_bytes.h"

namespace shoal {
namespace {

struct Problem {
  int64_t n = 24, k = 96, inputs = 400;
  std::vector<float> weights, x, hessian;  // [n, k], [inputs, k], [k, k]
  Problem() {
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

TEST_CASE("the factor is that of the damped inverse") {
  const Problem p;
  const std::vector<float> u = inverse_factor(p.hessian, p.k);
  REQUIRE(u.size() == p.hessian.size());
  double mean = 0;
  for (int64_t i = 0; i < p.k; ++i) mean += p.hessian[i * p.k + i] / p.k;
  // (H + damping) U^T U = 1.
  std::vector<double> inverse(p.k * p.k);
  for (int64_t i = 0; i < p.k; ++i) {
    for (int64_t j = 0; j < i; ++j) CHECK(u[i * p.k + j] == 0);
    for (int64_t l = 0; l < p.k; ++l) {
      for (int64_t j = 0; j < p.k; ++j) inverse[l * p.k + j] += double{u[i * p.k + l]} * u[i * p.k + j];
    }
  }
  for (int64_t i = 0; i < p.k; ++i) {
    for (int64_t j = 0; j < p.k; ++j) {
      double sum = 0.01 * mean * inverse[i * p.k + j];
      for (int64_t l = 0; l < p.k; ++l) sum += p.hessian[i * p.k + l] * inverse[l * p.k + j];
      CHECK(std::abs(sum - (i == j)) < 1e-3);
    }
  }
  CHECK(inverse_factor(std::vector<float>(p.k * p.k), p.k).empty());
}

TEST_CASE("outputs for the inputs seen change less than with plain rounding, the same with any threads") {
  const Problem p;
  const std::vector<float> factor = inverse_factor(p.hessian, p.k);
  for (const char* name : {"int4", "int4-g32", "int4-asym"}) {
    const QuantizationScheme scheme = parse_scheme("-q", name);
    const auto calibrated = gptq_quantize(p.weights, p.n, p.k, factor, scheme, "w", 3);
    const auto plain = gptq_quantize(p.weights, p.n, p.k, {}, scheme, "w", 1);
    INFO(name << ": " << p.output_error(*calibrated) << " against " << p.output_error(*plain));
    CHECK(p.output_error(*calibrated) < 0.6 * p.output_error(*plain));
    const auto again = gptq_quantize(p.weights, p.n, p.k, factor, scheme, "w", 1);
    CHECK(test::read_all(*calibrated) == test::read_all(*again));
  }
}

}  // namespace
}  // namespace shoal
