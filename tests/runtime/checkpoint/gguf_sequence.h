// A GGUF file loaded by the engine, and one sequence of it: steps without a scheduler.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "runtime/engine/loader.h"
#include "tests/support/ranks.h"

namespace shoal::test {

inline std::unique_ptr<LoadedModel> load_gguf(const std::string& path, const std::string& dtype,
                                              int64_t max_model_len) {
  LoadOptions options;
  options.model_dir = path;
  options.dtype = dtype;
  options.page_size = 8;
  options.max_model_len = options.kv_cache_tokens = max_model_len;
  options.max_num_seqs = 1;
  options.enforce_eager = true;
  return load_model(rank_runtime(), options);
}

// One sequence that owns all pages.
class Sequence {
 public:
  explicit Sequence(LoadedModel& model) : model_(model) {}
  std::span<const float> run(std::span<const int32_t> tokens, bool all_logits) {
    StepPlan plan;
    SequenceSlice& slice = plan.slices.emplace_back();
    slice.first_position = position_;
    slice.tokens.assign(tokens.begin(), tokens.end());
    position_ += static_cast<int32_t>(tokens.size());
    const int32_t page = model_.runner->page_size();
    for (int32_t i = 0; i < (position_ + page - 1) / page; ++i) slice.pages.push_back(i);
    slice.sample = true;
    slice.all_logits = all_logits;
    return model_.runner->run(plan);
  }

 private:
  LoadedModel& model_;
  int32_t position_ = 0;
};

}  // namespace shoal::test
