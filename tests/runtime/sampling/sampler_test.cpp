#include "runtime/sampling/sampler.h"

#include <catch2/catch.hpp>
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "kernels/base/error.h"

namespace shoal {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

int32_t pick(const std::vector<float>& logits, const SamplingParams& params,
             const std::vector<int32_t>& tokens = {0}, int32_t prompt_len = -1,
             const std::vector<int32_t>& ends = {}) {
  return sample(logits, params, tokens,
                prompt_len < 0 ? static_cast<int32_t>(tokens.size()) : prompt_len, ends)
      .token;
}

SamplingParams greedy() {
  SamplingParams p;
  p.temperature = 0;
  return p;
}

std::vector<float> random_logits(size_t vocab, uint64_t seed, float scale) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> logits(vocab);
  for (float& x : logits) x = normal(random);
  return logits;
}

// The distribution that the header promises, straight from its words, in double.
std::vector<double> expected(const std::vector<float>& logits, const SamplingParams& p) {
  const size_t vocab = logits.size();
  std::vector<size_t> order(vocab);
  for (size_t i = 0; i < vocab; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  if (p.top_k > 0) order.resize(std::min<size_t>(order.size(), static_cast<size_t>(p.top_k)));
  std::vector<double> weights(vocab, 0.0);
  const double max = logits[order[0]];
  for (size_t i : order) weights[i] = std::exp((logits[i] - max) / p.temperature);
  for (double& w : weights) {
    if (w < p.min_p) w = 0;
  }
  double total = 0;
  for (double w : weights) total += w;
  double mass = 0;
  for (size_t i : order) {
    if (mass >= p.top_p * total) weights[i] = 0;
    mass += weights[i];
  }
  for (double& w : weights) w /= mass;
  return weights;
}

// Draws `n` tokens with seeds 0, 1, .. and compares with `expected` by Pearson's chi-square.
void check_distribution(const std::vector<float>& logits, SamplingParams p, int n = 20000) {
  const std::vector<double> want = expected(logits, p);
  std::vector<int> got(logits.size(), 0);
  for (int i = 0; i < n; ++i) {
    p.seed = static_cast<uint64_t>(i);
    ++got[static_cast<size_t>(pick(logits, p))];
  }
  double chi2 = 0, rare_want = 0;
  int cells = 0, rare_got = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    INFO("token " << i << " p " << want[i]);
    if (want[i] == 0) REQUIRE(got[i] == 0);
    const double mean = want[i] * n;
    if (mean < 8) {  // chi-square needs filled cells: the rare ones are taken together
      rare_want += mean;
      rare_got += got[i];
    } else {
      chi2 += (got[i] - mean) * (got[i] - mean) / mean;
      ++cells;
    }
  }
  if (rare_want >= 8) {
    chi2 += (rare_got - rare_want) * (rare_got - rare_want) / rare_want;
    ++cells;
  }
  // Mean cells - 1, variance 2 (cells - 1): five standard deviations. The seeds are fixed, so this
  // never fails by chance.
  const double degrees = std::max(1, cells - 1);
  INFO("chi2 " << chi2 << " cells " << cells);
  REQUIRE(chi2 < degrees + 5 * std::sqrt(2 * degrees));
}

TEST_CASE("greedy takes the largest logit, the lowest id of equals") {
  REQUIRE(pick({1, 5, 5, -2}, greedy()) == 1);
  REQUIRE(pick({-kInf, -7, -kInf}, greedy()) == 1);
  std::vector<float> logits = random_logits(1000, 3, 1);
  logits[997] = 100;
  REQUIRE(pick(logits, greedy()) == 997);
}

TEST_CASE("logits that no model gives are a device fault that names the token") {
  using Catch::Matchers::Contains;
  std::vector<float> logits = random_logits(300, 1, 1);
  logits[217] = std::numeric_limits<float>::quiet_NaN();
  for (float temperature : {0.0f, 1.0f}) {
    SamplingParams p;
    p.temperature = temperature;
    REQUIRE_THROWS_AS(pick(logits, p), DeviceFault);
    REQUIRE_THROWS_WITH(pick(logits, p), Contains("217") && Contains("nan"));
  }
  logits[217] = kInf;
  REQUIRE_THROWS_WITH(pick(logits, greedy()), Contains("217") && Contains("inf"));
  REQUIRE_THROWS_AS(pick(std::vector<float>(5, -kInf), greedy()), DeviceFault);
}

TEST_CASE("the distribution of draws") {
  const std::vector<float> few = {0.5f, 1.5f, -1.0f, 0.5f, 3.0f, 2.0f, -kInf, 0.0f};
  const std::vector<float> many = random_logits(2000, 7, 2);
  for (const auto* logits : {&few, &many}) {
    SamplingParams p;
    check_distribution(*logits, p);
    p.temperature = 0.5f;
    check_distribution(*logits, p);
    p.temperature = 3.0f;
    check_distribution(*logits, p);
    p.top_k = 3;
    check_distribution(*logits, p);
    p = {};
    p.top_p = 0.8f;
    check_distribution(*logits, p);
    p.top_p = 0.999f;
    check_distribution(*logits, p);
    p.top_p = 0.1f;
    check_distribution(*logits, p);
    p = {};
    p.min_p = 0.1f;
    check_distribution(*logits, p);
    p.temperature = 1.7f;
    p.top_k = 40;
    p.top_p = 0.9f;
    p.min_p = 0.02f;
    check_distribution(*logits, p);
  }
}

TEST_CASE("top_p over equal weights takes the lower ids") {
  const std::vector<float> flat(5000, 1.0f);
  SamplingParams p;
  p.top_p = 0.5f;
  // Ranks by id among equals: the first half and nothing else.
  std::map<bool, int> halves;
  for (int i = 0; i < 4000; ++i) {
    p.seed = static_cast<uint64_t>(i);
    ++halves[pick(flat, p) < 2500];
  }
  REQUIRE(halves[true] == 4000);
}

TEST_CASE("extreme parameters still give the one sensible token") {
  const std::vector<float> logits = {1, 4, 3.999f, 2};
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SamplingParams p;
    p.seed = seed;
    p.temperature = 1e-6f;
    REQUIRE(pick(logits, p) == 1);
    p.temperature = std::numeric_limits<float>::denorm_min();
    REQUIRE(pick(logits, p) == 1);
    p = {};
    p.seed = seed;
    p.top_k = 1;
    REQUIRE(pick(logits, p) == 1);
    p = {};
    p.seed = seed;
    p.top_p = 1e-6f;
    REQUIRE(pick(logits, p) == 1);
    p = {};
    p.seed = seed;
    p.min_p = 1;
    REQUIRE(pick(logits, p) == 1);
    p = {};
    p.seed = seed;
    p.temperature = 1e30f;
    p.top_k = 1000;
    REQUIRE(pick(logits, p) < 4);
  }
}

TEST_CASE("bias and penalties, computed by hand") {
  SamplingParams p = greedy();
  p.logit_bias = {{2, 3.5f}, {99, 5}, {-1, 5}};
  REQUIRE(pick({1, 4, 1}, p) == 2);

  // Token 1 in the prompt, 2 in the output twice.
  const std::vector<int32_t> tokens = {1, 2, 2};
  const auto logprob_gap = [&](SamplingParams params, const std::vector<float>& logits) {
    params.num_logprobs = 3;
    const auto top = sample(logits, params, tokens, 1, {}).logprobs->top;
    std::map<int32_t, float> by_id(top.begin(), top.end());
    return std::vector<float>{by_id[1] - by_id[0], by_id[2] - by_id[0]};
  };
  p = greedy();
  p.presence_penalty = 0.5f;
  auto gap = logprob_gap(p, {0, 1, 2});
  REQUIRE(gap[0] == Approx(1));
  REQUIRE(gap[1] == Approx(1.5));
  p = greedy();
  p.frequency_penalty = 0.5f;
  gap = logprob_gap(p, {0, 1, 2});
  REQUIRE(gap[0] == Approx(1));
  REQUIRE(gap[1] == Approx(1));
  p = greedy();
  p.repetition_penalty = 2;
  gap = logprob_gap(p, {0, 1, -2});
  REQUIRE(gap[0] == Approx(0.5));
  REQUIRE(gap[1] == Approx(-4));
  p.logit_bias = {{2, 6.0f}};
  p.presence_penalty = 1;
  p.frequency_penalty = 0.25f;
  gap = logprob_gap(p, {0, 1, -2});  // (-2 + 6) / 2 - 1 - 2 * 0.25
  REQUIRE(gap[1] == Approx(0.5));
}

TEST_CASE("end tokens are masked before min_tokens, and never all tokens") {
  SamplingParams p = greedy();
  p.min_tokens = 2;
  const std::vector<float> logits = {1, 5, 4, 0};
  REQUIRE(pick(logits, p, {0, 0}, 1, {1}) == 2);
  REQUIRE(pick(logits, p, {0, 0, 0}, 1, {1}) == 1);
  REQUIRE(pick(logits, p, {0}, 1, {1, 2, 77, -3}) == 0);
  REQUIRE(pick(logits, p, {0}, 1, {0, 1, 2, 3, 1}) == 1);
}

TEST_CASE("logprobs are those of the unscaled logits") {
  const std::vector<float> logits = {0.5f, 2.0f, -1.0f, 2.0f, -kInf};
  double sum = 0;
  for (float x : logits) sum += std::exp(static_cast<double>(x));
  SamplingParams p;
  p.temperature = 0.01f;
  p.top_k = 1;
  p.num_logprobs = 3;
  SampleResult r = sample(logits, p, std::vector<int32_t>{0}, 1, {});
  REQUIRE(r.token == 1);
  REQUIRE(r.logprobs->logprob == Approx(2.0 - std::log(sum)));
  REQUIRE(r.logprobs->top.size() == 3);
  REQUIRE(r.logprobs->top[0].first == 1);
  REQUIRE(r.logprobs->top[1].first == 3);
  REQUIRE(r.logprobs->top[2].first == 0);
  REQUIRE(r.logprobs->top[2].second == Approx(0.5 - std::log(sum)));
  p.num_logprobs = 0;
  r = sample(logits, p, std::vector<int32_t>{0}, 1, {});
  REQUIRE(r.logprobs->top.empty());
  p.num_logprobs = 20;  // more than there are
  r = sample(logits, p, std::vector<int32_t>{0}, 1, {});
  REQUIRE(r.logprobs->top.size() == 5);
  p.num_logprobs = -1;
  REQUIRE_FALSE(sample(logits, p, std::vector<int32_t>{0}, 1, {}).logprobs);
}

TEST_CASE("a draw depends on seed and output position and on nothing else") {
  const std::vector<float> logits = random_logits(500, 11, 1);
  SamplingParams p;
  p.seed = 42;
  std::vector<int32_t> first, again, other_seed;
  for (int32_t i = 0; i < 100; ++i) {
    std::vector<int32_t> tokens(static_cast<size_t>(5 + i), 3);
    first.push_back(pick(logits, p, tokens, 5));
    std::vector<int32_t> longer_prompt(static_cast<size_t>(50 + i), 9);
    again.push_back(pick(logits, p, longer_prompt, 50));
    SamplingParams q = p;
    q.seed = 43;
    other_seed.push_back(pick(logits, q, tokens, 5));
  }
  REQUIRE(first == again);
  REQUIRE(first != other_seed);
  REQUIRE(std::ranges::count(first, first[0]) < 50);
}

TEST_CASE("uniform_random is uniform over positions and over seeds") {
  for (bool over_seeds : {false, true}) {
    std::vector<int> cells(64, 0);
    constexpr int kDraws = 64000;
    double sum = 0;
    for (uint64_t i = 0; i < kDraws; ++i) {
      const double u = over_seeds ? uniform_random(i, 0) : uniform_random(1, i);
      REQUIRE(u >= 0);
      REQUIRE(u < 1);
      sum += u;
      ++cells[static_cast<size_t>(u * 64)];
    }
    double chi2 = 0;
    for (int n : cells) chi2 += (n - 1000.0) * (n - 1000.0) / 1000.0;
    REQUIRE(chi2 < 63 + 5 * std::sqrt(2 * 63.0));
    REQUIRE(sum / kDraws == Approx(0.5).margin(5 / std::sqrt(12.0 * kDraws)));
  }
}

}  // namespace
}  // namespace shoal
