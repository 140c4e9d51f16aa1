// CudaSampler: from rows of logits on the device to tokens, without the logits leaving it. The same
// rules in the same order as runtime/sampling/sampler.h: logit bias; penalties; end-token mask;
// logprobs; temperature; top-k; min-p; top-p; draw by the number in [0, 1) that the host gives.
// Greedy takes the largest, the lowest id on a tie.
//
// Deterministic, and independent of the other rows of a step: probabilities are summed as integers
// of 2^-44 (exact for weights down to 2^-20 of the most likely token's; what is below 2^-44 is
// never drawn), so no order of additions shows. Against the host's sampler the token differs only
// where the random number falls within about 1e-7 of the border between two tokens, or where top-p
// cuts among tokens whose logits differ by less than a float32 weight shows: the larger logit ranks
// first here, the lower id there.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/device_sampler.h"

namespace shoal {

class CudaSampler final : public DeviceSampler {
 public:
  explicit CudaSampler(CudaDevice& device)
      : device_(device),
        input_(device.allocate(kReserve)),
        output_(device.allocate(kReserve)),
        host_output_(device.allocate_host(kReserve)) {}

  void launch(const Tensor& logits, std::span<const SampleRow> rows, const Tensor& ids) override;
  std::vector<SampledToken> collect() override;
  void feed(const Tensor& ids, const Tensor& sources, const Tensor& token_ids) override;

 private:
  // Enough for 256 rows with 4 KiB each of changed logits, or of logprobs; more is allocated when asked for.
  static constexpr size_t kReserve = size_t{1} << 20;

  CudaDevice& device_;
  Buffer input_, output_;
  std::vector<int32_t> num_logprobs_;    // of the rows under way
  HostBuffer host_output_;               // output_ of the rows under way, once they are sampled
  std::unique_ptr<DeviceEvent> sampled_;
  std::vector<std::byte> host_input_;
};

}  // namespace shoal
