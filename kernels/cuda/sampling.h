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
#include <span>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/cuda/cuda_device.h"

namespace shoal {

// What changes one token's logit, once per id. Ids outside the vocabulary are passed over.
struct LogitChange {
  int32_t id = 0;
  float bias = 0;
  int32_t in_context = 0;  // whether it occurs in prompt or output: the repetition penalty's
  int32_t output_count =
      0;  // how often it occurs in the output: the frequency and presence penalties'
};

struct SampleRow {
  float temperature = 1;  // 0: greedy
  float top_p = 1;
  int32_t top_k = 0;  // 0: off
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  double random = 0;                       // [0, 1)
  int32_t num_logprobs = -1;               // -1: none; at most kMaxTopLogprobs
  std::span<const LogitChange> changes;    // ids all different
  std::span<const int32_t> masked_tokens;  // not to be drawn, unless nothing else is left
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;                           // with num_logprobs >= 0
  std::vector<std::pair<int32_t, float>> top;  // num_logprobs of them, most likely first
};

class CudaSampler {
 public:
  static constexpr int32_t kMaxTopLogprobs = 1024;
  static constexpr int64_t kMaxVocab = int64_t{1} << 19;  // so that sums of 2^-44 fit into 64 bits

  explicit CudaSampler(CudaDevice& device) : device_(device) {}

  // Queues the work for rows [0, rows.size()) of `logits` on the device's stream and returns; what
  // `rows` points to may go. Rows with changes or masked tokens are changed in place. Not for
  // graphs: it brings up host values.
  void launch(const Tensor& logits,  // [R, vocab] F32, strided in rows
              std::span<const SampleRow> rows);
  // Waits for the last launch. Throws DeviceFault for logits that no model gives: NaN, +infinity,
  // or nothing but -infinity, naming row and token.
  std::vector<SampledToken> collect();

 private:
  CudaDevice& device_;
  Buffer input_, output_;
  std::vector<int32_t> num_logprobs_;  // of the rows under way
  std::vector<std::byte> host_;
};

}  // namespace shoal
