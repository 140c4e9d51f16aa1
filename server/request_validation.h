// Every rule about a request, checked before anything is allocated for it. All functions throw
// InvalidInput with one line that names the field, its value and what is allowed. Pure;
// thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/model_config.h"
#include "runtime/request/sampling_params.h"
#include "shoal/v1/inference.pb.h"

namespace shoal {

inline constexpr int32_t kMaxSamples = 64;  // n
inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 256;
inline constexpr int kMaxStopTokenIds = 64;
inline constexpr size_t kMaxLogitBiases = 1024;
inline constexpr float kMaxLogitBias = 100;
inline constexpr int32_t kMaxLogprobs = 20;
inline constexpr int kMaxMessages = 1024;
inline constexpr int kMaxTools = 128;
inline constexpr int32_t kMaxPriority = 100;
// n * max_tokens * (1 + logprobs): 4 Mi results bound what one call can make the server keep.
inline constexpr int64_t kMaxResults = int64_t{1} << 22;

struct RequestLimits {
  int32_t max_model_len = 0;  // tokens of prompt and output together
  int32_t vocab_size = 0;     // of the model
};

// A client's text in an error: short, quoted, without control characters.
std::string shown(std::string_view text);

// One call's sampling, defaults filled in.
struct CallSampling {
  SamplingParams params;  // of sample 0; max_tokens 0 until fit_to_context
  bool has_seed = false;
  int32_t n = 1;
  std::vector<std::string> stop;
  bool include_stop = false;
  bool skip_special_tokens = true;
};

CallSampling check_sampling(const v1::SamplingParams& sampling, const GenerationDefaults& defaults,
                            const RequestLimits& limits);
// The prompt's length against the context; fills in max_tokens, or checks it, and the products.
void fit_to_context(CallSampling* sampling, int64_t prompt_tokens, const RequestLimits& limits);
// A prompt of so many bytes that it cannot fit, whatever its tokens are: refused before it is
// tokenized. `longest_token` in bytes.
void check_prompt_bytes(size_t bytes, size_t longest_token, const RequestLimits& limits);
// `field` names the list in the message.
void check_token_ids(const google::protobuf::RepeatedField<int32_t>& ids, const char* field,
                     int32_t vocab_size);
void check_priority(int32_t priority);
void check_messages(const google::protobuf::RepeatedPtrField<v1::Message>& messages);
void check_tools(const google::protobuf::RepeatedPtrField<std::string>& tools);
void check_template_kwargs(const google::protobuf::Map<std::string, std::string>& kwargs);

}  // namespace shoal
