#include "runtime/sampling/device_row.h"

#include <map>

#include "kernels/base/error.h"
#include "runtime/sampling/sampler.h"

namespace shoal {

DeviceRow::DeviceRow(const SamplingParams& p, std::span<const int32_t> tokens, int32_t prompt_len,
                     std::span<const int32_t> end_token_ids) {
  SHOAL_CHECK(prompt_len >= 0 && static_cast<size_t>(prompt_len) <= tokens.size());
  const auto num_outputs = static_cast<int32_t>(tokens.size()) - prompt_len;
  row_ = {.temperature = p.temperature,
          .top_p = p.top_p,
          .top_k = p.top_k,
          .min_p = p.min_p,
          .repetition_penalty = p.repetition_penalty,
          .presence_penalty = p.presence_penalty,
          .frequency_penalty = p.frequency_penalty,
          .random = uniform_random(p.seed, static_cast<uint64_t>(num_outputs)),
          .num_logprobs = p.num_logprobs};
  if (num_outputs < p.min_tokens) row_.masked_tokens = end_token_ids;

  std::map<int32_t, LogitChange> by_id;
  const auto change = [&](int32_t id) -> LogitChange& {
    LogitChange& c = by_id[id];
    c.id = id;
    return c;
  };
  for (const auto& [id, bias] : p.logit_bias) change(id).bias += bias;
  if (p.repetition_penalty != 1) {
    for (int32_t id : tokens) change(id).in_context = 1;
  }
  if (p.frequency_penalty != 0 || p.presence_penalty != 0) {
    for (int32_t id : tokens.subspan(prompt_len)) ++change(id).output_count;
  }
  changes_.reserve(by_id.size());
  for (const auto& [id, c] : by_id) changes_.push_back(c);
}

SampleRow DeviceRow::row() const {
  SampleRow row = row_;
  row.changes = changes_;
  return row;
}

}  // namespace shoal
