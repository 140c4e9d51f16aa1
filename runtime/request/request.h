// Plain data that enters and leaves the engine. One Request is one sequence: n > 1 is n requests with
// different seeds, made by the front end (the prefix cache shares their prompt).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/request/sampling_params.h"

namespace shoal {

using RequestId = uint64_t;  // given by the front end, unique for its life

struct Request {
  RequestId id = 0;
  // Prompt, then (only when a request is replayed after a failure) the tokens already emitted.
  std::vector<int32_t> tokens;
  int32_t prompt_len = 0;  // tokens[0, prompt_len) is the prompt proper
  SamplingParams sampling;
  int32_t priority = 0;  // lower runs first; ties: fair shares of clients, then arrival
  // Whose it is: among waiting requests of one priority, clients take turns. 0: nobody's in particular.
  uint64_t client = 0;
  // Its prompt is found in the prefix cache only by requests with the same salt: a client must not be
  // able to tell by the time of an answer what another one asked (CVE-2025-46570).
  std::string cache_salt;
};

enum class FinishReason { kNone, kStop, kLength, kAbort, kError };

struct TokenLogprobs {
  float logprob = 0;                                // of the chosen token
  std::vector<std::pair<int32_t, float>> top;       // most likely first
};

// What a step gives one request.
struct TokenEvent {
  RequestId id = 0;
  std::optional<int32_t> token;  // absent in an event that only ends the request
  std::optional<TokenLogprobs> logprobs;
  FinishReason finish_reason = FinishReason::kNone;
  std::optional<int32_t> matched_stop_token;
  int32_t cached_tokens = 0;  // prompt tokens taken from the prefix cache
  std::string error;          // with kError: a message for the client
  // With the first token: from the request's arrival at the engine to the first step with it.
  std::optional<double> queue_seconds;
};

}  // namespace shoal
