#include "server/request_validation.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "kernels/base/error.h"
#include "runtime/text/json_input.h"

namespace shoal {
namespace {

// Below this, logits divided by the temperature overflow; vLLM draws the line at the same place.
constexpr float kMinTemperature = 0.01f;
constexpr float kMaxTemperature = 100;
constexpr size_t kShownBytes = 40;

float check_range(const char* field, float value, float low, float high) {
  if (!(value >= low && value <= high)) {  // also false for NaN
    throw_invalid("sampling.{} is {}; it must be in [{}, {}]", field, value, low, high);
  }
  return value;
}

float check_open_range(const char* field, float value, float high) {
  if (!(value > 0 && value <= high)) {
    throw_invalid("sampling.{} is {}; it must be in (0, {}]", field, value, high);
  }
  return value;
}

int32_t check_int(const char* field, int32_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    throw_invalid("sampling.{} is {}; it must be in [{}, {}]", field, value, low, high);
  }
  return value;
}

void check_id(const std::string& field, int32_t id, int32_t vocab_size) {
  if (id < 0 || id >= vocab_size) {
    throw_invalid("{} has token id {}; ids of this model are in [0, {}]", field, id,
                  vocab_size - 1);
  }
}

void check_floats(const v1::SamplingParams& in, const GenerationDefaults& defaults,
                  SamplingParams* out) {
  const bool greedy_by_default = defaults.do_sample.has_value() && !*defaults.do_sample;
  const float temperature = in.has_temperature() ? in.temperature()
                            : greedy_by_default  ? 0.0f
                                                 : defaults.temperature.value_or(1.0f);
  check_range("temperature", temperature, 0, kMaxTemperature);
  out->temperature = temperature == 0 ? 0 : std::max(temperature, kMinTemperature);
  out->top_p =
      check_open_range("top_p", in.has_top_p() ? in.top_p() : defaults.top_p.value_or(1.0f), 1);
  out->min_p =
      check_range("min_p", in.has_min_p() ? in.min_p() : defaults.min_p.value_or(0.0f), 0, 1);
  // Logits are divided by it: far smaller ones would give infinite logits, which count as a broken device.
  out->repetition_penalty =
      check_range("repetition_penalty",
                  in.has_repetition_penalty() ? in.repetition_penalty()
                                              : defaults.repetition_penalty.value_or(1.0f),
                  0.01f, 100);
  out->presence_penalty = check_range("presence_penalty", in.presence_penalty(), -2, 2);
  out->frequency_penalty = check_range("frequency_penalty", in.frequency_penalty(), -2, 2);
}

std::vector<std::string> check_stop(const v1::SamplingParams& in) {
  if (in.stop_size() > kMaxStopStrings) {
    throw_invalid("sampling.stop has {} strings; at most {} are allowed", in.stop_size(),
                  kMaxStopStrings);
  }
  for (int i = 0; i < in.stop_size(); ++i) {
    const size_t bytes = in.stop(i).size();
    if (bytes == 0 || bytes > kMaxStopStringBytes) {
      throw_invalid("sampling.stop[{}] has {} bytes; it must have 1 to {}", i, bytes,
                    kMaxStopStringBytes);
    }
  }
  return {in.stop().begin(), in.stop().end()};
}

void check_biases(const v1::SamplingParams& in, int32_t vocab_size, SamplingParams* out) {
  if (in.logit_bias().size() > kMaxLogitBiases) {
    throw_invalid("sampling.logit_bias has {} entries; at most {} are allowed",
                  in.logit_bias().size(), kMaxLogitBiases);
  }
  for (const auto& [id, bias] : in.logit_bias()) {
    check_id("sampling.logit_bias", id, vocab_size);
    if (!(std::abs(bias) <= kMaxLogitBias)) {
      throw_invalid("sampling.logit_bias[{}] is {}; it must be in [{}, {}]", id, bias,
                    -kMaxLogitBias, kMaxLogitBias);
    }
    out->logit_bias.emplace_back(id, bias);
  }
  std::sort(out->logit_bias.begin(), out->logit_bias.end());  // maps have no order of their own
}

void check_tool_calls(const v1::Message& message, int index) {
  if (message.tool_calls_size() > 0 && message.role() != "assistant") {
    throw_invalid("messages[{}].tool_calls is set for role {}; only an assistant makes calls",
                  index, shown(message.role()));
  }
  if (message.tool_calls_size() > kMaxTools) {
    throw_invalid("messages[{}].tool_calls has {} entries; at most {} are allowed", index,
                  message.tool_calls_size(), kMaxTools);
  }
  for (int i = 0; i < message.tool_calls_size(); ++i) {
    const std::string field = fmt::format("messages[{}].tool_calls[{}]", index, i);
    const v1::ToolCall& call = message.tool_calls(i);
    if (call.name().empty()) throw_invalid("{}.name is empty; it must name a function", field);
    if (!parse_ordered_json(call.arguments(), field + ".arguments").is_object()) {
      throw_invalid("{}.arguments is {}; it must be a JSON object", field, shown(call.arguments()));
    }
  }
}

}  // namespace

std::string shown(std::string_view text) {
  std::string out = "\"";
  for (const char c : text.substr(0, kShownBytes)) {
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  while (text.size() > kShownBytes && (static_cast<unsigned char>(out.back()) & 0xC0) == 0x80) {
    out.pop_back();  // the cut may have split a character
  }
  if (text.size() > kShownBytes && static_cast<unsigned char>(out.back()) >= 0xC0) out.pop_back();
  return out + (text.size() > kShownBytes ? "…\"" : "\"");
}

CallSampling check_sampling(const v1::SamplingParams& in, const GenerationDefaults& defaults,
                            const RequestLimits& limits) {
  CallSampling out;
  SamplingParams& params = out.params;
  check_floats(in, defaults, &params);
  const int32_t top_k =
      check_int("top_k", in.has_top_k() ? in.top_k() : defaults.top_k.value_or(0), -1, INT32_MAX);
  params.top_k = top_k <= 0 || top_k >= limits.vocab_size ? 0 : top_k;  // all tokens: off
  out.n = in.has_n() ? check_int("n", in.n(), 1, kMaxSamples) : 1;
  out.has_seed = in.has_seed();
  params.seed = in.seed();
  params.max_tokens =
      in.has_max_tokens() ? check_int("max_tokens", in.max_tokens(), 1, limits.max_model_len) : 0;
  params.min_tokens = check_int("min_tokens", in.min_tokens(), 0,
                                params.max_tokens > 0 ? params.max_tokens : limits.max_model_len);
  params.ignore_eos = in.ignore_eos();
  params.num_logprobs =
      in.has_logprobs() ? check_int("logprobs", in.logprobs(), 0, kMaxLogprobs) : -1;
  out.stop = check_stop(in);
  if (in.stop_token_ids_size() > kMaxStopTokenIds) {
    throw_invalid("sampling.stop_token_ids has {} ids; at most {} are allowed",
                  in.stop_token_ids_size(), kMaxStopTokenIds);
  }
  check_token_ids(in.stop_token_ids(), "sampling.stop_token_ids", limits.vocab_size);
  params.stop_token_ids.assign(in.stop_token_ids().begin(), in.stop_token_ids().end());
  check_biases(in, limits.vocab_size, &params);
  out.include_stop = in.include_stop_str_in_output();
  out.skip_special_tokens = !in.has_skip_special_tokens() || in.skip_special_tokens();
  return out;
}

void fit_to_context(CallSampling* sampling, int64_t prompt_tokens, const RequestLimits& limits) {
  SamplingParams& params = sampling->params;
  if (prompt_tokens == 0) throw_invalid("the prompt is empty; it must have at least one token");
  if (prompt_tokens >= limits.max_model_len) {
    throw_invalid(
        "the prompt has {} tokens; the context of {} tokens must also hold at least one new token",
        prompt_tokens, limits.max_model_len);
  }
  const int64_t room = limits.max_model_len - prompt_tokens;
  const bool given = params.max_tokens > 0;
  if (given && params.max_tokens > room) {
    throw_invalid(
        "sampling.max_tokens is {}; the prompt has {} tokens and the context {}, which leaves {}",
        params.max_tokens, prompt_tokens, limits.max_model_len, room);
  }
  if (params.min_tokens > room) {
    throw_invalid("sampling.min_tokens is {}; prompt and context leave {}", params.min_tokens,
                  room);
  }
  const int64_t per_token = int64_t{sampling->n} * (1 + std::max(params.num_logprobs, 0));
  if (!given) {
    params.max_tokens = static_cast<int32_t>(
        std::max<int64_t>(std::min(room, kMaxResults / per_token), params.min_tokens));
  }
  if (params.max_tokens * per_token > kMaxResults) {
    throw_invalid("sampling.n * max_tokens * (1 + logprobs) is {}; at most {} is allowed",
                  params.max_tokens * per_token, kMaxResults);
  }
}

void check_prompt_bytes(size_t bytes, size_t longest_token, const RequestLimits& limits) {
  const size_t limit = static_cast<size_t>(limits.max_model_len) * longest_token;
  if (bytes > limit) {
    throw_invalid("the prompt has {} bytes, at least {} tokens; the context has {} tokens", bytes,
                  bytes / longest_token, limits.max_model_len);
  }
}

void check_token_ids(const google::protobuf::RepeatedField<int32_t>& ids, const char* field,
                     int32_t vocab_size) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size)
      check_id(fmt::format("{}[{}]", field, i), ids[i], vocab_size);
  }
}

void check_priority(int32_t priority) {
  if (priority < -kMaxPriority || priority > kMaxPriority) {
    throw_invalid("priority is {}; it must be in [{}, {}]", priority, -kMaxPriority, kMaxPriority);
  }
}

void check_messages(const google::protobuf::RepeatedPtrField<v1::Message>& messages) {
  constexpr std::array<std::string_view, 4> kRoles = {"system", "user", "assistant", "tool"};
  if (messages.empty()) throw_invalid("messages is empty; there must be at least one message");
  if (messages.size() > kMaxMessages) {
    throw_invalid("messages has {} entries; at most {} are allowed", messages.size(), kMaxMessages);
  }
  for (int i = 0; i < messages.size(); ++i) {
    const v1::Message& message = messages[i];
    if (std::find(kRoles.begin(), kRoles.end(), message.role()) == kRoles.end()) {
      throw_invalid("messages[{}].role is {}; it must be system, user, assistant or tool", i,
                    shown(message.role()));
    }
    check_tool_calls(message, i);
  }
}

void check_tools(const google::protobuf::RepeatedPtrField<std::string>& tools) {
  if (tools.size() > kMaxTools) {
    throw_invalid("tools has {} entries; at most {} are allowed", tools.size(), kMaxTools);
  }
  for (int i = 0; i < tools.size(); ++i) {
    const std::string field = fmt::format("tools[{}]", i);
    const nlohmann::ordered_json tool = parse_ordered_json(tools[i], field);
    const bool named = tool.is_object() && tool.contains("function") &&
                       tool["function"].is_object() && tool["function"].contains("name") &&
                       tool["function"]["name"].is_string();
    if (!named) {
      throw_invalid(
          R"({} is {}; it must be {{"type": "function", "function": {{"name": ..., ...}}}})", field,
          shown(tools[i]));
    }
  }
}

void check_template_kwargs(const google::protobuf::Map<std::string, std::string>& kwargs) {
  for (const auto& [name, value] : kwargs) {
    if (name != "thinking" && name != "enable_thinking") {
      throw_invalid("chat_template_kwargs has {}; allowed are thinking and enable_thinking",
                    shown(name));
    }
    if (value != "true" && value != "false") {
      throw_invalid("chat_template_kwargs.{} is {}; it must be true or false", name, shown(value));
    }
  }
}

}  // namespace shoal
