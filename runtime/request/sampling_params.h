// How the tokens of one request are chosen and when it ends. Token level: stop strings, which need
// text, are matched by the front end.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace shoal {

struct SamplingParams {
  float temperature = 1.0f;         // 0 = greedy; >= 0
  float top_p = 1.0f;               // (0, 1]
  int32_t top_k = 0;                // 0 = off
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // > 0; over prompt and output tokens
  float presence_penalty = 0.0f;    // [-2, 2]; over output tokens
  float frequency_penalty = 0.0f;   // [-2, 2]; over output tokens
  uint64_t seed = 0;                // the front end draws one when the request names none
  int32_t max_tokens = 16;          // > 0
  int32_t min_tokens = 0;           // no end token before that many
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;                   // in addition to the model's end tokens
  std::vector<std::pair<int32_t, float>> logit_bias;     // token id, added before everything else
  int32_t num_logprobs = -1;  // -1 none; 0 the chosen token's; n also the n most likely
};

}  // namespace shoal
