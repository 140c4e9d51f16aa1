// TokenExchange against the direct sum over a token's experts, for random routings.
#include "parallel/expert_parallel.h"

#include <algorithm>
#include <catch2/catch.hpp>

#include "tests/parallel/support/device_values.h"
#include "tests/parallel/support/values.h"
#include "tests/parallel/support/world.h"

namespace shoal::test {
namespace {

constexpr int64_t kExperts = 16;
constexpr int64_t kTopK = 4;
constexpr int64_t kHidden = 24;

// A made-up expert: different for every expert and column.
float expert(int32_t e, float x, int64_t column) {
  return x * random_value(100 + e, column) + random_value(200 + e, column);
}

struct Tokens {
  std::vector<float> x;        // [T, hidden]
  std::vector<int32_t> ids;    // [T, top_k], distinct
  std::vector<float> weights;  // [T, top_k]
};

// `experts`: those that tokens may choose.
Tokens make_tokens(uint64_t seed, int64_t count, Range experts) {
  Tokens tokens;
  tokens.x = random_values(seed, count * kHidden);
  tokens.weights = random_values(seed + 1, count * kTopK);
  for (int64_t t = 0; t < count; ++t) {
    std::vector<int32_t> order;
    for (int64_t e = experts.begin; e < experts.end; ++e) order.push_back(static_cast<int32_t>(e));
    for (int64_t i = 0; i < kTopK; ++i) {
      std::swap(order[i], order[i + integer_of(seed + 2 + t, i, std::ssize(order) - i)]);
      tokens.ids.push_back(order[i]);
    }
  }
  return tokens;
}

// The weighted sum of the experts in `range` only: one rank's partial row. Choices in order.
void add_experts(const float* x, const int32_t* ids, const float* weights, Range range,
                 float* out) {
  for (int64_t j = 0; j < kTopK; ++j) {
    if (!range.contains(ids[j])) continue;
    for (int64_t i = 0; i < kHidden; ++i) out[i] += weights[j] * expert(ids[j], x[i], i);
  }
}

void check_exchange(const std::vector<int64_t>& tokens_of, const ShardTable& ranges,
                    const Tokens& tokens) {
  const int rank = world().rank();
  const int64_t count = tokens_of[rank];
  ExecContext ctx = world().context();
  Workspace::Scope scope(ctx.workspace);
  const Tokens& own = tokens;

  int64_t received = 0;
  const auto local_experts = [&](const Tensor& x, const Tensor& ids, const Tensor& weights,
                                 const Tensor& out) {
    received = x.dim(0);
    REQUIRE((ids.dim(0) == received && weights.dim(0) == received && ids.dim(1) == kTopK));
    const auto host_x = to_host<float>(x);
    const auto host_ids = to_host<int32_t>(ids);
    const auto host_weights = to_host<float>(weights);
    std::vector<float> sums(received * kHidden);
    for (int64_t t = 0; t < received; ++t) {
      const int32_t* choices = host_ids.data() + t * kTopK;
      // A row comes only if an expert of it is here.
      REQUIRE(std::any_of(choices, choices + kTopK,
                          [&](int32_t e) { return ranges[rank].contains(e); }));
      add_experts(host_x.data() + t * kHidden, choices, host_weights.data() + t * kTopK,
                  ranges[rank], sums.data() + t * kHidden);
    }
    world().device->copy_to_device(out.data, sums.data(), out.num_bytes());
  };
  const OnDevice<float> x(own.x, {count, kHidden}), weights(own.weights, {count, kTopK});
  const OnDevice<int32_t> ids(own.ids, {count, kTopK});
  const int64_t bytes_before = ctx.comm.bytes_sent();
  TokenExchange exchange(ctx, ranges, x, ids, weights);
  exchange.dispatch(ctx);
  local_experts(exchange.x(), exchange.expert_ids(), exchange.weights(), exchange.partial());
  const Tensor out = exchange.combine(ctx);
  const int64_t bytes = ctx.comm.bytes_sent() - bytes_before;

  REQUIRE((out.dim(0) == count && out.dim(1) == kHidden));
  const std::vector<float> sums = to_host<float>(out);
  int64_t sent_to_others = 0, sent_to_itself = 0;
  for (int64_t t = 0; t < count; ++t) {
    std::vector<float> expected(kHidden, 0.0f);
    for (int r = 0; r < world().size(); ++r) {
      const int32_t* ids = own.ids.data() + t * kTopK;
      if (std::none_of(ids, ids + kTopK, [&](int32_t e) { return ranges[r].contains(e); })) {
        continue;
      }
      ++(r == rank ? sent_to_itself : sent_to_others);
      std::vector<float> partial(kHidden, 0.0f);
      add_experts(own.x.data() + t * kHidden, ids, own.weights.data() + t * kTopK, ranges[r],
                  partial.data());
      for (int64_t i = 0; i < kHidden; ++i) expected[i] += partial[i];
    }
    // Equal in every bit: rows are added in rank order.
    const auto row = sums.begin() + t * kHidden;
    REQUIRE(std::vector<float>(row, row + kHidden) == expected);
  }
  // docs/parallelism.md: counts, then per row its choices and its vector, then a vector back.
  const int64_t others = received - sent_to_itself;
  CHECK(bytes == 8 * (world().size() - 1) + sent_to_others * 4 * (2 * kTopK + kHidden) +
                     others * 4 * kHidden);
}

// Tokens per rank: even, uneven, ranks with none, none at all.
std::vector<std::vector<int64_t>> token_counts() {
  const int size = world().size();
  std::vector<std::vector<int64_t>> all(5, std::vector<int64_t>(size, 0));
  for (int r = 0; r < size; ++r) {
    all[0][r] = 8;
    all[1][r] = 1 + 5 * r;
    all[2][r] = r % 2 == 0 ? 3 : 0;
    all[3][r] = r == size - 1 ? 33 : 0;
  }
  return all;
}

TEST_CASE("random routings, any number of tokens on any rank") {
  const ShardTable ranges = split_evenly(kExperts, world().size());
  uint64_t seed = 1000 * (world().rank() + 1);
  for (const auto& tokens_of : token_counts()) {
    for (int round = 0; round < 4; ++round) {
      CAPTURE(tokens_of, round);
      check_exchange(tokens_of, ranges,
                     make_tokens(seed += 50, tokens_of[world().rank()], {0, kExperts}));
    }
  }
}

TEST_CASE("all tokens choose experts of few ranks: the others compute nothing") {
  const ShardTable ranges = split_evenly(kExperts, world().size());
  uint64_t seed = 1000 * (world().rank() + 1);
  for (const auto& tokens_of : token_counts()) {
    for (const Range experts : {Range{0, kTopK}, Range{kExperts - kTopK, kExperts}}) {
      CAPTURE(tokens_of, experts.begin);
      check_exchange(tokens_of, ranges,
                     make_tokens(seed += 50, tokens_of[world().rank()], experts));
    }
  }
}

TEST_CASE("a rank without experts") {
  ShardTable ranges(world().size(), Range{0, 0});  // all experts on the last rank
  ranges.back() = {0, kExperts};
  const std::vector<int64_t> tokens_of(world().size(), 6);
  check_exchange(tokens_of, ranges, make_tokens(77 * (world().rank() + 1), 6, {0, kExperts}));
}

TEST_CASE("choices that are no expert (padding, -1) count for nothing") {
  const ShardTable ranges = split_evenly(kExperts, world().size());
  const std::vector<int64_t> tokens_of(world().size(), 5);
  Tokens tokens = make_tokens(31 * (world().rank() + 1), 5, {0, kExperts});
  tokens.ids[1] = -1;
  std::fill_n(tokens.ids.begin() + 3 * kTopK, kTopK, -1);  // a whole token
  check_exchange(tokens_of, ranges, tokens);
}

}  // namespace
}  // namespace shoal::test
