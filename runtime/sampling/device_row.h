// DeviceRow: one request's way to choose a token, as a DeviceSampler takes it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/device_sampler.h"
#include "runtime/request/sampling_params.h"

namespace shoal {

class DeviceRow {
 public:
  // As sample() of sampler.h takes them. `end_token_ids` must outlive the row.
  DeviceRow(const SamplingParams& params, std::span<const int32_t> tokens, int32_t prompt_len,
            std::span<const int32_t> end_token_ids);

  SampleRow row() const;  // refers to this object

 private:
  SampleRow row_;
  std::vector<LogitChange> changes_;
};

}  // namespace shoal
