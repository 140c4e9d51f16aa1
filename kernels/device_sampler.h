// DeviceSampler: from rows of logits to tokens where the logits are. For devices whose logits would have a
// long way to the host (128,000 floats a row); on the CPU runtime/sampling/sampler.h does the same to
// host memory, and its header has the rules and their order.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/base/tensor.h"

namespace shoal {

// What changes one token's logit, once per id. Ids outside the vocabulary are passed over.
struct LogitChange {
  int32_t id = 0;
  float bias = 0;
  int32_t in_context = 0;    // whether it occurs in prompt or output: the repetition penalty's
  int32_t output_count = 0;  // how often in the output: the frequency and presence penalties'
};

struct SampleRow {
  int64_t logits_row = 0;  // the row of launch()'s logits that it is about
  int64_t index = 0;       // in launch()'s ids
  float temperature = 1;  // 0: greedy
  float top_p = 1;
  int32_t top_k = 0;  // 0: off
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  double random = 0;                       // [0, 1)
  int32_t num_logprobs = -1;               // -1: none
  std::span<const LogitChange> changes;    // ids all different
  std::span<const int32_t> masked_tokens;  // not to be drawn, unless nothing else is left
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;                           // with num_logprobs >= 0
  std::vector<std::pair<int32_t, float>> top;  // num_logprobs of them, most likely first
};

class DeviceSampler {
 public:
  // The most that launch() takes.
  static constexpr int32_t kMaxTopLogprobs = 1024;
  static constexpr int64_t kMaxVocab = int64_t{1} << 19;  // sums of 2^-44 then fit into 64 bits

  virtual ~DeviceSampler() = default;
  // Queues the work for some rows of `logits`, each at most once, and returns; what `rows` points to may
  // go. Rows with changes or masked tokens are changed in place. ids[index] of each row becomes its token,
  // for what is queued later. Not while a graph is recorded.
  virtual void launch(const Tensor& logits,  // [R, vocab] F32, strided in rows
                      std::span<const SampleRow> rows,
                      const Tensor& ids) = 0;  // [more than the largest index] I32; or undefined
  // The tokens of the last launch, in the order of its rows. Waits for that launch only and not for what
  // was queued after it. Throws DeviceFault for logits that no model gives: NaN, +infinity, or nothing
  // but -infinity, naming row and token.
  virtual std::vector<SampledToken> collect() = 0;

  // Queues token_ids[t] = ids[sources[t]] for every sources[t] >= 0: how tokens that the host does not
  // know yet come into the next step.
  virtual void feed(const Tensor& ids,      // [n] I32
                    const Tensor& sources,  // [T] I32, each less than n
                    const Tensor& token_ids) = 0;  // [T] I32
};

}  // namespace shoal
