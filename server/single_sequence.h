// SingleSequence: one sequence that owns the first pages of the cache: steps without a scheduler, for
// the commands that look at a model's numbers. Every rank runs the same calls.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/engine/loader.h"

namespace shoal {

class SingleSequence {
 public:
  // `model` must outlive it.
  SingleSequence(LoadedModel& model, ExpertExchange exchange);

  // The next tokens. Logits on rank 0: of each of them with all_logits, else of the last.
  std::span<const float> run(std::span<const int32_t> tokens, bool absorbed, bool all_logits);
  // After a run() of all tokens but the last: what the multi-token-prediction layer makes of them.
  std::span<const float> run_mtp(std::span<const int32_t> following);
  // The next run() begins another sequence in the same pages.
  void restart() { position_ = 0; }

 private:
  StepPlan make_plan(std::span<const int32_t> tokens, bool absorbed, bool all_logits);

  LoadedModel& model_;
  const ExpertExchange exchange_;
  std::vector<int32_t> pages_;
  int32_t position_ = 0;
  uint64_t step_ = 0;
};

// --expert-exchange. Throws InvalidInput.
ExpertExchange parse_exchange(const std::string& value);

}  // namespace shoal
