// CudaSampler against the host's sampler: the same tokens and logprobs for the same numbers.
#include "kernels/cuda/sampling.h"

#include <algorithm>
#include <cmath>

#include "runtime/sampling/device_row.h"
#include "runtime/sampling/sampler.h"
#include "tests/kernels/cuda/cuda_case.h"

namespace shoal::test {
namespace {

// One request as the host's sampler takes it.
struct Case {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<int32_t> tokens;
  int32_t prompt_len = 0;
  std::vector<int32_t> end_tokens;
};

HostTensor as_rows(const std::vector<Case>& cases, int64_t gap = 0) {
  const auto vocab = static_cast<int64_t>(cases[0].logits.size());
  HostTensor t = HostTensor::strided(DType::kF32, static_cast<int64_t>(cases.size()), vocab, gap);
  for (size_t r = 0; r < cases.size(); ++r) {
    std::ranges::copy(cases[r].logits, t.view().row<float>(static_cast<int64_t>(r)));
  }
  return t;
}

std::vector<SampledToken> sample_on_device(CudaSampler& sampler, const std::vector<Case>& cases,
                                           int64_t gap = 0) {
  const OnDevice logits(as_rows(cases, gap));
  std::vector<DeviceRow> device_rows;
  for (const Case& c : cases) {
    device_rows.emplace_back(c.params, c.tokens, c.prompt_len, c.end_tokens);
  }
  std::vector<SampleRow> rows;
  for (const DeviceRow& r : device_rows) {
    rows.push_back(r.row());
    rows.back().logits_row = static_cast<int64_t>(rows.size()) - 1;
  }
  sampler.launch(logits, rows, {});
  return sampler.collect();
}

// All cases in one launch, each against the host.
void check(const std::vector<Case>& cases, int64_t gap = 0) {
  CudaSampler sampler(cuda_device());
  const std::vector<SampledToken> got = sample_on_device(sampler, cases, gap);
  REQUIRE(got.size() == cases.size());
  for (size_t r = 0; r < cases.size(); ++r) {
    const Case& c = cases[r];
    INFO("row " << r << " temperature " << c.params.temperature << " top_k " << c.params.top_k
                << " top_p " << c.params.top_p << " min_p " << c.params.min_p << " seed "
                << c.params.seed);
    const SampleResult want = sample(c.logits, c.params, c.tokens, c.prompt_len, c.end_tokens);
    CHECK(got[r].token == want.token);
    if (!want.logprobs) continue;
    // The sum is within vocab * 2^-44 of exact, and the host's float32 result rounds once.
    CHECK(got[r].logprob == Approx(want.logprobs->logprob).epsilon(1e-6).margin(1e-6));
    REQUIRE(got[r].top.size() == want.logprobs->top.size());
    for (size_t i = 0; i < got[r].top.size(); ++i) {
      CHECK(got[r].top[i].first == want.logprobs->top[i].first);
      CHECK(got[r].top[i].second ==
            Approx(want.logprobs->top[i].second).epsilon(1e-6).margin(1e-6));
    }
  }
}

Case random_case(Random& random, int64_t vocab, float deviation) {
  Case c;
  for (int64_t i = 0; i < vocab; ++i) c.logits.push_back(random.normal(deviation));
  c.tokens = {0};
  c.prompt_len = 1;
  c.params.seed = static_cast<uint64_t>(random.below(1 << 30));
  return c;
}

}  // namespace

TEST_CASE("cuda sampling: greedy, the lowest id on a tie", "[cuda][sampling]") {
  for_each_schedule([] {
    Random random(1);
    std::vector<Case> cases;
    for (int i = 0; i < 4; ++i) {
      cases.push_back(random_case(random, 3001, 3));
      cases.back().params.temperature = 0;
    }
    cases[1].logits[2999] = cases[1].logits[1300] = cases[1].logits[1301] = 50;
    for (float& x : cases[2].logits) x = -INFINITY;
    cases[2].logits[7] = -3e38f;
    for (float& x : cases[3].logits) x = x < 0 ? -0.0f : 0.0f;
    check(cases, 3);
  });
}

TEST_CASE("cuda sampling: the host's tokens, over all combinations of the cuts",
          "[cuda][sampling]") {
  for_each_schedule([] {
    Random random(2);
    for (const int64_t vocab : {1, 2, 100, 5003}) {
      std::vector<Case> cases;
      for (const float temperature : {0.3f, 1.0f, 20.0f}) {
        for (const int32_t top_k : {0, 1, 40, 2500}) {
          for (const float top_p : {1.0f, 0.95f, 0.3f}) {
            for (const float min_p : {0.0f, 0.1f}) {
              cases.push_back(random_case(random, vocab, 4));
              cases.back().params.temperature = temperature;
              cases.back().params.top_k = top_k;
              cases.back().params.top_p = top_p;
              cases.back().params.min_p = min_p;
            }
          }
        }
      }
      check(cases);
    }
  });
}

TEST_CASE("cuda sampling: many draws from one distribution", "[cuda][sampling]") {
  Random random(3);
  const Case base = random_case(random, 300, 2);
  for (const int32_t top_k : {0, 100}) {
    std::vector<Case> cases(200, base);
    for (size_t i = 0; i < cases.size(); ++i) {
      cases[i].params.seed = i;
      cases[i].params.top_k = top_k;
      cases[i].params.top_p = 0.9f;
    }
    check(cases);
  }
}

TEST_CASE("cuda sampling: more equal logits than are sorted at once", "[cuda][sampling]") {
  for_each_schedule([] {
    Random random(4);
    // Few values, so that the cuts fall among thousands of equals and the ids decide.
    for (const int values : {1, 3}) {
      std::vector<Case> cases;
      for (const int32_t top_k : {0, 1, 1025, 4000}) {
        for (const float top_p : {1.0f, 0.7f}) {
          cases.push_back(random_case(random, 5003, 1));
          for (float& x : cases.back().logits) x = static_cast<float>(random.below(values)) - 1;
          cases.back().params.top_k = top_k;
          cases.back().params.top_p = top_p;
          cases.back().params.num_logprobs = 30;
        }
      }
      check(cases);
    }
    // Values so close that one or two buckets by distance hold them all, yet of different weights.
    std::vector<Case> cases;
    for (const float top_p : {1.0f, 0.2f, 0.7f, 0.99f}) {
      for (const int32_t top_k : {0, 3333}) {
        for (int i = 0; i < 3; ++i) {
          cases.push_back(random_case(random, 5003, 1));
          for (float& x : cases.back().logits) {
            x = 39.0f + static_cast<float>(random.below(3000)) * 0x1p-18f;
          }
          cases.back().logits[17] = 40;
          cases.back().logits[4000] = -100;
          cases.back().params.temperature = 1.25f;
          cases.back().params.top_p = top_p;
          cases.back().params.top_k = top_k;
        }
      }
    }
    check(cases);
  });
}

TEST_CASE("cuda sampling: infinitely unlikely tokens are never drawn", "[cuda][sampling]") {
  for_each_schedule([] {
    Random random(5);
    std::vector<Case> cases;
    for (const int32_t top_k : {0, 10, 400}) {
      for (const float top_p : {1.0f, 0.9f}) {
        cases.push_back(random_case(random, 500, 1));
        for (size_t i = 0; i < 500; ++i) {
          if (i % 100 != 37) cases.back().logits[i] = -INFINITY;
        }
        cases.back().params.top_k = top_k;
        cases.back().params.top_p = top_p;
        cases.back().params.num_logprobs = 3;
      }
    }
    check(cases);
  });
}

TEST_CASE("cuda sampling: bias, penalties and the end-token mask, in the host's order",
          "[cuda][sampling]") {
  for_each_schedule([] {
    Random random(6);
    std::vector<Case> cases;
    for (int i = 0; i < 24; ++i) {
      Case c = random_case(random, 200, 2);
      c.params.temperature = i % 3 == 0 ? 0.0f : 0.8f;
      c.params.num_logprobs = i % 4 == 0 ? 8 : -1;
      c.tokens.clear();
      for (int t = 0; t < 60; ++t) c.tokens.push_back(static_cast<int32_t>(random.below(230)));
      c.prompt_len = 20 + i;
      if (i % 2 == 0) c.params.logit_bias = {{5, 3.5f}, {199, -2.0f}, {200, 100.0f}, {-1, 100.0f}};
      if (i % 5 != 0) c.params.repetition_penalty = 1.3f;
      if (i % 5 != 1) c.params.frequency_penalty = 0.4f;
      if (i % 5 != 2) c.params.presence_penalty = -0.7f;
      c.end_tokens = {3, 4, 3, 1000, -5};
      c.params.min_tokens = i < 12 ? 1000 : 0;
      c.logits[3] = 9;  // the favourite, were it not masked
      cases.push_back(c);
    }
    // A mask that would leave nothing is not applied; one that leaves a token is.
    for (const bool other : {false, true}) {
      Case c = random_case(random, 200, 2);
      for (float& x : c.logits) x = -INFINITY;
      c.logits[3] = 1;
      c.logits[4] = 2;
      if (other) c.logits[77] = -50;
      c.end_tokens = {3, 4, 3};
      c.params.min_tokens = 5;
      c.params.num_logprobs = 1;
      cases.push_back(c);
    }
    check(cases);
  });
}

TEST_CASE("cuda sampling: logprobs", "[cuda][sampling]") {
  for_each_schedule([] {
    Random random(7);
    std::vector<Case> cases;
    for (const int32_t n : {0, 1, 20, 1024}) {
      for (const float temperature : {0.0f, 0.7f}) {
        cases.push_back(random_case(random, 4001, 3));
        cases.back().params.num_logprobs = n;
        cases.back().params.temperature = temperature;
      }
    }
    check(cases);
    // More than there are tokens.
    cases = {random_case(random, 7, 3)};
    cases[0].params.num_logprobs = 20;
    check(cases);
  });
}

TEST_CASE("cuda sampling: a launch may follow another, larger or smaller, and none is none",
          "[cuda][sampling]") {
  Random random(8);
  CudaSampler sampler(cuda_device());
  for (const int rows : {1, 50, 3, 0, 60}) {
    std::vector<Case> cases;
    for (int i = 0; i < rows; ++i) {
      cases.push_back(random_case(random, 64, 2));
      cases.back().params.num_logprobs = i % 5;
    }
    if (rows == 0) {
      sampler.launch(OnDevice(HostTensor(DType::kF32, {0, 64})), {}, {});
      CHECK(sampler.collect().empty());
      continue;
    }
    const std::vector<SampledToken> got = sample_on_device(sampler, cases);
    for (size_t r = 0; r < cases.size(); ++r) {
      const Case& c = cases[r];
      CHECK(got[r].token == sample(c.logits, c.params, c.tokens, c.prompt_len, {}).token);
    }
  }
}

TEST_CASE("cuda sampling: logits that no model gives are a fault that names them",
          "[cuda][sampling]") {
  for_each_schedule([] {
    Random random(9);
    const auto message = [&](const std::function<void(std::vector<float>&)>& spoil) {
      std::vector<Case> cases = {random_case(random, 3000, 1), random_case(random, 3000, 1)};
      spoil(cases[1].logits);
      CudaSampler sampler(cuda_device());
      try {
        sample_on_device(sampler, cases);
      } catch (const DeviceFault& fault) {
        return std::string(fault.what());
      }
      return std::string("no fault");
    };
    CHECK(message([](auto& logits) { logits[2100] = std::nanf(""), logits[2500] = INFINITY; }) ==
          "row 1: the logit of token 2100 is infinite or not a number");
    CHECK(message([](auto& logits) { logits[2100] = INFINITY, logits[2500] = -std::nanf(""); }) ==
          "row 1: the logit of token 2100 is infinite or not a number");
    CHECK(message([](auto& logits) { std::ranges::fill(logits, -INFINITY); }) ==
          "row 1: no token has a logit above -infinity");
    CHECK(message([](auto&) {}) == "no fault");
  });
}

TEST_CASE("cuda sampling refuses what does not fit", "[cuda][sampling]") {
  CudaSampler sampler(cuda_device());
  const OnDevice logits(HostTensor(DType::kF32, {2, 8})), half(HostTensor(DType::kBF16, {2, 8}));
  const OnDevice ids(HostTensor(DType::kI32, {2})), not_ids(HostTensor(DType::kF32, {2}));
  const std::vector<SampleRow> three(3), one(1);
  CHECK_THROWS_AS(sampler.launch(logits, three, {}), Bug);
  CHECK_THROWS_AS(sampler.launch(half, one, {}), Bug);
  CHECK_THROWS_AS(sampler.launch(logits, one, not_ids), Bug);
  const auto refused = [&](const std::function<void(SampleRow&)>& spoil) {
    SampleRow row;
    spoil(row);
    CHECK_THROWS_AS(sampler.launch(logits, std::span(&row, 1), ids), Bug);
  };
  refused([](SampleRow& r) { r.num_logprobs = CudaSampler::kMaxTopLogprobs + 1; });
  refused([](SampleRow& r) { r.random = 1; });
  refused([](SampleRow& r) { r.logits_row = 2; });
  refused([](SampleRow& r) { r.logits_row = -1; });
  refused([](SampleRow& r) { r.index = 2; });
  CHECK_THROWS_AS(sampler.feed(ids, OnDevice(HostTensor(DType::kI32, {3})), ids), Bug);
}

// Rows in any order, some left out; the tokens come into the next step's ids while a third launch is
// already queued behind.
TEST_CASE("cuda sampling: tokens stay on the device for the next step", "[cuda][sampling]") {
  for_each_schedule([] {
    constexpr int64_t kRows = 6, kTokens = 300;
    Random random(10);
    std::vector<Case> cases;
    for (int64_t i = 0; i < kRows; ++i) {
      cases.push_back(random_case(random, 500, 3));
      cases.back().params.temperature = 0;
      cases.back().params.num_logprobs = 0;
    }
    CudaSampler sampler(cuda_device());
    const OnDevice logits(as_rows(cases));
    HostTensor unsampled(DType::kI32, {4});
    for (int64_t i = 0; i < 4; ++i) unsampled.view().as<int32_t>()[i] = -7;
    const OnDevice ids(unsampled);
    std::vector<SampleRow> rows(3);
    const int64_t logits_rows[] = {4, 0, 2}, indices[] = {1, 3, 0};
    std::vector<int32_t> want(3);
    for (int i = 0; i < 3; ++i) {
      rows[i] = {.logits_row = logits_rows[i], .index = indices[i], .temperature = 0};
      const Case& c = cases[logits_rows[i]];
      want[i] = sample(c.logits, c.params, c.tokens, c.prompt_len, {}).token;
    }
    HostTensor token_ids(DType::kI32, {kTokens}), sources(DType::kI32, {kTokens});
    std::vector<int32_t> expected(kTokens);
    for (int64_t t = 0; t < kTokens; ++t) {
      const auto which = static_cast<int64_t>(random.below(4)) - 1;  // of the three, or none
      token_ids.view().as<int32_t>()[t] = static_cast<int32_t>(1000 + t);
      sources.view().as<int32_t>()[t] = which < 0 ? -1 : static_cast<int32_t>(indices[which]);
      expected[t] = which < 0 ? static_cast<int32_t>(1000 + t) : want[which];
    }
    const OnDevice fed(token_ids), from(sources);
    sampler.launch(logits, rows, ids);
    sampler.feed(ids, from, fed);
    const std::vector<SampledToken> got = sampler.collect();
    REQUIRE(got.size() == 3);
    for (int i = 0; i < 3; ++i) CHECK(got[i].token == want[i]);
    const auto values = [](const OnDevice& tensor) {
      const HostTensor host = tensor.host();
      const auto* begin = host.view().as<int32_t>();
      return std::vector<int32_t>(begin, begin + host.view().num_elements());
    };
    CHECK(values(fed) == expected);
    CHECK(values(ids) == std::vector<int32_t>{want[2], want[0], -7, want[1]});
  });
}

}  // namespace shoal::test
