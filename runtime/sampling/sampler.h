// Sampler: from one row of logits to one token, on the host, on rank 0.
// Order, as in vLLM: logit bias; repetition, frequency and presence penalties; min_tokens mask;
// log-softmax for logprobs (of the unscaled logits after those); temperature; top-k; min-p; top-p;
// draw. Greedy (temperature 0) takes the largest, lowest id on a tie.
// The random number of output position i of a request is a pure function of (seed, i)
// (counter-based), so a replayed or preempted request draws the same tokens.
// Thread-safe (no state).
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "runtime/request/request.h"

namespace shoal {

struct SampleResult {
  int32_t token = 0;
  std::optional<TokenLogprobs> logprobs;
};

// Throws DeviceFault for logits that no model gives: NaN, +infinity, or nothing but -infinity.
// Ids outside the vocabulary (in bias, tokens or end tokens) change nothing. A min_tokens mask that
// would leave no token at all is not applied.
SampleResult sample(std::span<const float> logits,     // [vocab]
                    const SamplingParams& params,
                    std::span<const int32_t> tokens,   // prompt and output so far
                    int32_t prompt_len,
                    std::span<const int32_t> end_token_ids);  // masked before min_tokens

// Uniform in [0, 1), with 53 random bits: output `position` of the stream `seed`.
double uniform_random(uint64_t seed, uint64_t position);

}  // namespace shoal
