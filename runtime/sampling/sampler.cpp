#include "runtime/sampling/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <queue>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {
namespace {

constexpr float kNegInf = -std::numeric_limits<float>::infinity();

struct Candidate {
  float value = 0;
  int32_t id = 0;
};

// Larger values first, the lower id of equals: the one order in which candidates are ranked.
bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

// The largest logit; the lowest id on a tie.
int32_t arg_max(std::span<const float> logits) {
  float best = kNegInf;
  bool broken = false;  // without a branch in the loop, so that it vectorises
  for (float x : logits) {
    best = x > best ? x : best;
    broken |= !(x < std::numeric_limits<float>::infinity());
  }
  if (broken || best == kNegInf) {
    for (size_t i = 0; i < logits.size(); ++i) {
      if (!(logits[i] < std::numeric_limits<float>::infinity())) {
        throw DeviceFault(fmt::format("the logit of token {} is {}", i, logits[i]));
      }
    }
    throw DeviceFault("no token has a logit above -infinity");
  }
  return static_cast<int32_t>(std::ranges::find(logits, best) - logits.begin());
}

// The `count` first in rank, in order. One pass: most values fail the first comparison.
std::vector<Candidate> top(std::span<const float> values, int64_t count) {
  count = std::min(count, static_cast<int64_t>(values.size()));
  if (count <= 0) return {};
  // The queue's "largest" is the last in rank.
  std::priority_queue<Candidate, std::vector<Candidate>, decltype(&ranks_before)> kept(ranks_before);
  for (size_t i = 0; i < values.size(); ++i) {
    // Ids ascend, so an equal value ranks after those kept.
    if (static_cast<int64_t>(kept.size()) < count) {
      kept.push({values[i], static_cast<int32_t>(i)});
    } else if (values[i] > kept.top().value) {
      kept.pop();
      kept.push({values[i], static_cast<int32_t>(i)});
    }
  }
  std::vector<Candidate> sorted(kept.size());
  for (size_t i = sorted.size(); i-- > 0; kept.pop()) sorted[i] = kept.top();
  return sorted;
}

bool changes_logits(const SamplingParams& p, int32_t num_outputs) {
  return !p.logit_bias.empty() || p.repetition_penalty != 1.0f || p.frequency_penalty != 0.0f ||
         p.presence_penalty != 0.0f || num_outputs < p.min_tokens;
}

void apply_bias_and_penalties(const SamplingParams& params, std::span<const int32_t> tokens,
                              size_t prompt_len, std::span<float> logits) {
  const auto known = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits.size(); };
  for (const auto& [id, bias] : params.logit_bias) {
    if (known(id)) logits[id] += bias;
  }
  if (params.repetition_penalty == 1.0f && params.frequency_penalty == 0.0f &&
      params.presence_penalty == 0.0f) {
    return;
  }
  std::vector<bool> seen(logits.size(), false);
  if (params.repetition_penalty != 1.0f) {
    for (int32_t id : tokens) {
      if (!known(id) || seen[id]) continue;
      seen[id] = true;
      logits[id] = logits[id] > 0 ? logits[id] / params.repetition_penalty
                                  : logits[id] * params.repetition_penalty;
    }
    seen.assign(logits.size(), false);
  }
  for (int32_t id : tokens.subspan(prompt_len)) {
    if (!known(id)) continue;
    logits[id] -= params.frequency_penalty;
    if (!seen[id]) logits[id] -= params.presence_penalty;
    seen[id] = true;
  }
}

void mask_end_tokens(std::span<const int32_t> end_token_ids, std::span<float> logits) {
  std::vector<Candidate> masked;
  for (int32_t id : end_token_ids) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    masked.push_back({logits[id], id});
    logits[id] = kNegInf;
  }
  if (std::ranges::any_of(logits, [](float x) { return x != kNegInf; })) return;
  // In reverse, so that an id named twice gets its first value back.
  for (auto m = masked.rbegin(); m != masked.rend(); ++m) logits[m->id] = m->value;
}

TokenLogprobs logprobs_of(std::span<const float> logits, float max, int32_t token, int32_t count) {
  double sum = 0;
  for (float x : logits) sum += std::exp(x - max);
  const double log_sum = max + std::log(sum);
  TokenLogprobs result;
  result.logprob = static_cast<float>(logits[token] - log_sum);
  for (const Candidate& c : top(logits, count)) {
    result.top.emplace_back(c.id, static_cast<float>(c.value - log_sum));
  }
  return result;
}

// Cuts candidates (weights in [0, 1]) to the smallest set, first in rank first, that holds `top_p` of
// their mass. The bits of positive floats order them, so their upper half is a bucket 0.8 % wide: only
// the bucket in which the set ends is sorted, however flat the distribution is.
void keep_top_p(std::vector<Candidate>& candidates, float top_p) {
  const auto bucket = [](float weight) { return std::bit_cast<uint32_t>(weight) >> 16; };
  std::vector<double> mass(bucket(1.0f) + 1, 0.0);
  for (const Candidate& c : candidates) mass[bucket(c.value)] += c.value;
  double total = 0;
  for (double m : mass) total += m;
  const double wanted = top_p * total;
  double held = 0;
  size_t edge = mass.size() - 1;
  while (edge > 0 && held + mass[edge] < wanted) held += mass[edge--];
  std::vector<Candidate> on_edge;
  std::ranges::copy_if(candidates, std::back_inserter(on_edge),
                       [&](const Candidate& c) { return bucket(c.value) == edge; });
  std::ranges::sort(on_edge, ranks_before);
  Candidate last = {};
  for (const Candidate& c : on_edge) {
    last = c;
    held += c.value;
    if (held >= wanted) break;
  }
  std::erase_if(candidates, [&](const Candidate& c) { return ranks_before(last, c); });
}

int32_t draw(std::span<const Candidate> candidates, double random) {
  double total = 0;
  for (const Candidate& c : candidates) total += c.value;
  double left = random * total;
  int32_t last = candidates.front().id;
  for (const Candidate& c : candidates) {
    if (c.value <= 0) continue;
    last = c.id;
    left -= c.value;
    if (left < 0) break;
  }
  return last;  // rounding may leave a little of the last one's mass
}

int32_t draw_token(std::span<const float> logits, float max, const SamplingParams& params,
                   double random) {
  std::vector<Candidate> candidates;
  const auto vocab = static_cast<int64_t>(logits.size());
  if (params.top_k > 0 && params.top_k < vocab) {
    candidates = top(logits, params.top_k);
  } else {
    candidates.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) {
      candidates[i] = {logits[i], static_cast<int32_t>(i)};
    }
  }
  for (Candidate& c : candidates) c.value = std::exp((c.value - max) / params.temperature);
  // The most likely token's weight is 1.
  if (params.min_p > 0) {
    std::erase_if(candidates, [&](const Candidate& c) { return c.value < params.min_p; });
  }
  if (params.top_p < 1) keep_top_p(candidates, params.top_p);
  return draw(candidates, random);
}

uint64_t mix(uint64_t x) {  // the finaliser of SplitMix64 (Steele, Lea, Flood 2014)
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

// Output `position` of SplitMix64 started at the mixed seed: seeds that follow each other (n > 1)
// give unrelated streams.
double uniform_random(uint64_t seed, uint64_t position) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
  const uint64_t bits = mix(mix(seed + kGolden) + (position + 1) * kGolden);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

SampleResult sample(std::span<const float> raw_logits, const SamplingParams& params,
                    std::span<const int32_t> tokens, int32_t prompt_len,
                    std::span<const int32_t> end_token_ids) {
  SHOAL_CHECK(!raw_logits.empty() && prompt_len >= 0 &&
              static_cast<size_t>(prompt_len) <= tokens.size());
  const auto num_outputs = static_cast<int32_t>(tokens.size()) - prompt_len;
  int32_t best = arg_max(raw_logits);
  std::span<const float> logits = raw_logits;
  std::vector<float> changed;
  if (changes_logits(params, num_outputs)) {
    changed.assign(raw_logits.begin(), raw_logits.end());
    apply_bias_and_penalties(params, tokens, static_cast<size_t>(prompt_len), changed);
    if (num_outputs < params.min_tokens) mask_end_tokens(end_token_ids, changed);
    logits = changed;
    best = arg_max(logits);
  }
  const float max = logits[best];
  SampleResult result;
  result.token = params.temperature > 0
                     ? draw_token(logits, max, params,
                                  uniform_random(params.seed, static_cast<uint64_t>(num_outputs)))
                     : best;
  if (params.num_logprobs >= 0) {
    result.logprobs = logprobs_of(logits, max, result.token, params.num_logprobs);
  }
  return result;
}

}  // namespace shoal
