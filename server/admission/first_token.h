// When the first token of a call can come at best, by what was measured. Pure.
//
//   prompts = (tokens of prompts ahead + own prompt) * (1 - hit rate of the prefix cache)
//             * seconds for a token of a prompt
//   places  = sequences that must finish before one of this call can start / sequences finishing a second
//   step    = seconds of a decode step, when something runs (this one's first step shares it)
//   least   = max(prompts, places) + step
//
// A call is refused when not even half of `least` is left until its deadline. What is not measured yet counts
// 0, so an unknown never refuses. Optimistic on purpose beyond that: what is ahead are only prompts that come
// first whatever happens (better priority, or the same client's at the same priority: with fair shares other
// clients' may come later), without the first of each of those queues, which may be almost done. Half, because
// all of these are averages: a prompt that the prefix cache holds, or answers that end early, may be luckier.
#pragma once

#include <cstdint>
#include <optional>

namespace shoal {

struct FirstTokenInputs {
  int64_t prompt_tokens_ahead = 0, own_prompt_tokens = 0;
  double hit_rate = 0;              // [0, 1]
  double prompt_token_seconds = 0;  // 0: not known, as the next two
  double decode_step_seconds = 0;
  std::optional<double> finishes_per_second;
  int64_t finishes_needed = 0;
  bool running = false;  // some sequence has its first token and has not ended
};

double least_seconds_to_first_token(const FirstTokenInputs& in);
// Whether a call with so many seconds left until its deadline is to be refused.
bool cannot_make_it(const FirstTokenInputs& in, double seconds_left);

}  // namespace shoal
