#include "server/admission/first_token.h"

#include <algorithm>

namespace shoal {

double least_seconds_to_first_token(const FirstTokenInputs& in) {
  const auto tokens = static_cast<double>(in.prompt_tokens_ahead + in.own_prompt_tokens);
  const double prompts = tokens * (1 - in.hit_rate) * in.prompt_token_seconds;
  double places = 0;
  if (in.finishes_per_second && *in.finishes_per_second > 0) {
    places = static_cast<double>(in.finishes_needed) / *in.finishes_per_second;
  }
  return std::max(prompts, places) + (in.running ? in.decode_step_seconds : 0);
}

bool cannot_make_it(const FirstTokenInputs& in, double seconds_left) {
  constexpr double kOptimism = 0.5;
  return seconds_left <= 0 || kOptimism * least_seconds_to_first_token(in) > seconds_left;
}

}  // namespace shoal
