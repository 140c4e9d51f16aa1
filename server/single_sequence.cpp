#include "server/single_sequence.h"

#include "kernels/base/error.h"

namespace shoal {

SingleSequence::SingleSequence(LoadedModel& model, ExpertExchange exchange)
    : model_(model), exchange_(exchange) {
  pages_.resize(model.num_pages);
  // Not in order, so that a back end that ignores the block table is found out.
  for (int32_t i = 0; i < model.num_pages; ++i) pages_[i] = model.num_pages - 1 - i;
}

std::span<const float> SingleSequence::run(std::span<const int32_t> tokens, bool absorbed,
                                           bool all_logits) {
  const StepPlan plan = make_plan(tokens, absorbed, all_logits);
  position_ += static_cast<int32_t>(tokens.size());
  return model_.runner->run(plan);
}

std::span<const float> SingleSequence::run_mtp(std::span<const int32_t> following) {
  position_ = 0;
  return model_.runner->run_mtp(make_plan(following, /*absorbed=*/false, /*all_logits=*/true));
}

StepPlan SingleSequence::make_plan(std::span<const int32_t> tokens, bool absorbed,
                                   bool all_logits) {
  StepPlan plan;
  plan.number = step_++;
  plan.exchange = exchange_;
  SequenceSlice slice;
  slice.first_position = position_;
  slice.tokens.assign(tokens.begin(), tokens.end());
  const int32_t page_size = model_.runner->page_size();
  const int32_t end = position_ + static_cast<int32_t>(tokens.size());
  slice.pages.assign(pages_.begin(), pages_.begin() + (end + page_size - 1) / page_size);
  slice.absorbed = absorbed;
  slice.sample = true;
  slice.all_logits = all_logits;
  plan.slices.push_back(std::move(slice));
  return plan;
}

ExpertExchange parse_exchange(const std::string& value) {
  if (value == "all-to-all") return ExpertExchange::kAllToAll;
  if (value == "auto" || value == "replicated") return ExpertExchange::kReplicated;
  throw_invalid("--expert-exchange {}: use auto, replicated or all-to-all", value);
}

}  // namespace shoal
