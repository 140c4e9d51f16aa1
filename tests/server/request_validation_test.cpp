#include "server/request_validation.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "kernels/base/error.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;

constexpr RequestLimits kLimits{.max_model_len = 100, .vocab_size = 50};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

CallSampling check(const v1::SamplingParams& params, const GenerationDefaults& defaults = {}) {
  return check_sampling(params, defaults, kLimits);
}

struct BadSampling {
  const char* names;  // must be in the message
  std::function<void(v1::SamplingParams&)> set;
};

TEST_CASE("a wrong sampling field is refused by name", "[validation]") {
  const std::vector<BadSampling> table = {
      {"temperature is nan", [](auto& p) { p.set_temperature(kNan); }},
      {"temperature is inf", [](auto& p) { p.set_temperature(kInf); }},
      {"temperature is -0.1", [](auto& p) { p.set_temperature(-0.1f); }},
      {"temperature is 101", [](auto& p) { p.set_temperature(101); }},
      {"top_p is 2", [](auto& p) { p.set_top_p(2); }},
      {"top_p is 0", [](auto& p) { p.set_top_p(0); }},
      {"top_p is nan", [](auto& p) { p.set_top_p(kNan); }},
      {"min_p is 1.5", [](auto& p) { p.set_min_p(1.5f); }},
      {"min_p is nan", [](auto& p) { p.set_min_p(kNan); }},
      {"repetition_penalty is 0", [](auto& p) { p.set_repetition_penalty(0); }},
      {"repetition_penalty is 1e-38", [](auto& p) { p.set_repetition_penalty(1e-38f); }},
      {"repetition_penalty is inf", [](auto& p) { p.set_repetition_penalty(kInf); }},
      {"presence_penalty is nan", [](auto& p) { p.set_presence_penalty(kNan); }},
      {"presence_penalty is -3", [](auto& p) { p.set_presence_penalty(-3); }},
      {"frequency_penalty is 2.5", [](auto& p) { p.set_frequency_penalty(2.5f); }},
      {"top_k is -5", [](auto& p) { p.set_top_k(-5); }},
      {"n is 0", [](auto& p) { p.set_n(0); }},
      {"n is 10000", [](auto& p) { p.set_n(10000); }},
      {"max_tokens is 0", [](auto& p) { p.set_max_tokens(0); }},
      {"max_tokens is -1", [](auto& p) { p.set_max_tokens(-1); }},
      {"max_tokens is 2147483647", [](auto& p) { p.set_max_tokens(INT32_MAX); }},
      {"min_tokens is -1", [](auto& p) { p.set_min_tokens(-1); }},
      {"min_tokens is 11", [](auto& p) { p.set_max_tokens(10), p.set_min_tokens(11); }},
      {"logprobs is -1", [](auto& p) { p.set_logprobs(-1); }},
      {"logprobs is 21", [](auto& p) { p.set_logprobs(21); }},
      {"stop has 1000 strings",
       [](auto& p) {
         for (int i = 0; i < 1000; ++i) p.add_stop("x");
       }},
      {"stop[1] has 0 bytes", [](auto& p) { p.add_stop("x"), p.add_stop(""); }},
      {"stop[0] has 1000000 bytes", [](auto& p) { p.add_stop(std::string(1000000, 'x')); }},
      {"stop_token_ids has 65 ids",
       [](auto& p) {
         for (int i = 0; i < 65; ++i) p.add_stop_token_ids(i % 50);
       }},
      {"stop_token_ids[0] has token id 50", [](auto& p) { p.add_stop_token_ids(50); }},
      {"stop_token_ids[1] has token id -1",
       [](auto& p) { p.add_stop_token_ids(3), p.add_stop_token_ids(-1); }},
      {"logit_bias has token id 50", [](auto& p) { (*p.mutable_logit_bias())[50] = 1; }},
      {"logit_bias has token id -2147483648",
       [](auto& p) { (*p.mutable_logit_bias())[INT32_MIN] = 1; }},
      {"logit_bias[3] is nan", [](auto& p) { (*p.mutable_logit_bias())[3] = kNan; }},
      {"logit_bias[3] is 101", [](auto& p) { (*p.mutable_logit_bias())[3] = 101; }},
      {"logit_bias has 1025 entries",
       [](auto& p) {
         for (int i = 0; i < 1025; ++i) (*p.mutable_logit_bias())[i] = 0;
       }},
  };
  for (const BadSampling& row : table) {
    v1::SamplingParams params;
    row.set(params);
    INFO(row.names);
    REQUIRE_THROWS_WITH(check(params), Contains(std::string("sampling.") + row.names));
  }
}

TEST_CASE("the ends of the ranges are allowed", "[validation]") {
  v1::SamplingParams params;
  params.set_temperature(-0.0f);
  params.set_top_p(1);
  params.set_top_k(-1);
  params.set_min_p(1);
  params.set_presence_penalty(-2);
  params.set_frequency_penalty(2);
  params.set_n(64);
  params.set_logprobs(20);
  params.set_max_tokens(99);
  for (int i = 0; i < 16; ++i) params.add_stop(std::string(256, 'x'));
  (*params.mutable_logit_bias())[49] = -100;
  const CallSampling sampling = check(params);
  CHECK(sampling.params.temperature == 0);
  CHECK_FALSE(std::signbit(sampling.params.temperature));
  CHECK(sampling.params.top_k == 0);
  CHECK(sampling.params.logit_bias == std::vector<std::pair<int32_t, float>>{{49, -100.0f}});
}

TEST_CASE("what a request leaves out comes from the checkpoint, then from the defaults",
          "[validation]") {
  const CallSampling plain = check({});
  CHECK(plain.params.temperature == 1);
  CHECK(plain.params.top_p == 1);
  CHECK(plain.params.num_logprobs == -1);
  CHECK(plain.n == 1);
  CHECK(plain.skip_special_tokens);
  GenerationDefaults defaults;
  defaults.temperature = 0.6f;
  defaults.top_p = 0.95f;
  defaults.top_k = 20;
  CHECK(check({}, defaults).params.temperature == 0.6f);
  CHECK(check({}, defaults).params.top_p == 0.95f);
  CHECK(check({}, defaults).params.top_k == 20);
  v1::SamplingParams params;
  params.set_temperature(0.3f);
  CHECK(check(params, defaults).params.temperature == 0.3f);
  defaults.do_sample = false;
  CHECK(check({}, defaults).params.temperature == 0);
  CHECK(check(params, defaults).params.temperature == 0.3f);
}

TEST_CASE("a temperature too small to divide by is raised", "[validation]") {
  v1::SamplingParams params;
  params.set_temperature(1e-30f);
  CHECK(check(params).params.temperature == 0.01f);
}

TEST_CASE("prompt and max_tokens must fit the context", "[validation]") {
  CallSampling sampling = check({});
  fit_to_context(&sampling, 99, kLimits);
  CHECK(sampling.params.max_tokens == 1);
  sampling = check({});
  REQUIRE_THROWS_WITH(fit_to_context(&sampling, 100, kLimits),
                      Contains("100 tokens") && Contains("context of 100"));
  REQUIRE_THROWS_WITH(fit_to_context(&sampling, 0, kLimits), Contains("empty"));
  v1::SamplingParams params;
  params.set_max_tokens(50);
  sampling = check(params);
  fit_to_context(&sampling, 50, kLimits);
  CHECK(sampling.params.max_tokens == 50);
  REQUIRE_THROWS_WITH(fit_to_context(&sampling, 51, kLimits),
                      Contains("max_tokens is 50") && Contains("leaves 49"));
  REQUIRE_THROWS_WITH(check_prompt_bytes(1001, 10, kLimits), Contains("1001 bytes"));
  REQUIRE_NOTHROW(check_prompt_bytes(1000, 10, kLimits));
}

TEST_CASE("the product of n, max_tokens and logprobs is bounded", "[validation]") {
  const RequestLimits large{.max_model_len = 200000, .vocab_size = 50};
  v1::SamplingParams params;
  params.set_n(64);
  params.set_logprobs(20);
  params.set_max_tokens(100000);
  CallSampling sampling = check_sampling(params, {}, large);
  REQUIRE_THROWS_WITH(fit_to_context(&sampling, 10, large), Contains("134400000"));
  params.clear_max_tokens();  // not asked for: as many as the bound allows
  sampling = check_sampling(params, {}, large);
  fit_to_context(&sampling, 10, large);
  CHECK(sampling.params.max_tokens == kMaxResults / (64 * 21));
  params.set_min_tokens(100000);  // nor does a minimum lead past it
  sampling = check_sampling(params, {}, large);
  REQUIRE_THROWS_WITH(fit_to_context(&sampling, 10, large), Contains("134400000"));
}

TEST_CASE("messages, tools and template variables are checked", "[validation]") {
  v1::ChatRequest request;
  REQUIRE_THROWS_WITH(check_messages(request.messages()), Contains("messages is empty"));
  request.add_messages()->set_role("user");
  REQUIRE_NOTHROW(check_messages(request.messages()));
  request.add_messages()->set_role("robot\n");
  REQUIRE_THROWS_WITH(check_messages(request.messages()),
                      Contains("messages[1].role is \"robot \""));
  request.mutable_messages(1)->set_role("user");
  v1::ToolCall* call = request.mutable_messages(1)->add_tool_calls();
  call->set_name("f");
  call->set_arguments("{}");
  REQUIRE_THROWS_WITH(check_messages(request.messages()), Contains("only an assistant"));
  request.mutable_messages(1)->set_role("assistant");
  REQUIRE_NOTHROW(check_messages(request.messages()));
  call->set_arguments("[1]");
  REQUIRE_THROWS_WITH(check_messages(request.messages()), Contains("must be a JSON object"));
  call->set_arguments(std::string(100000, '['));
  REQUIRE_THROWS_AS(check_messages(request.messages()), InvalidInput);

  request.add_tools(R"({"type": "function", "function": {"name": "f"}})");
  REQUIRE_NOTHROW(check_tools(request.tools()));
  request.add_tools(R"({"name": "f"})");
  REQUIRE_THROWS_WITH(check_tools(request.tools()), Contains("tools[1]"));
  request.set_tools(1, "{");
  REQUIRE_THROWS_WITH(check_tools(request.tools()), Contains("tools[1]"));

  (*request.mutable_chat_template_kwargs())["thinking"] = "true";
  REQUIRE_NOTHROW(check_template_kwargs(request.chat_template_kwargs()));
  (*request.mutable_chat_template_kwargs())["tokenize"] = "true";
  REQUIRE_THROWS_WITH(check_template_kwargs(request.chat_template_kwargs()), Contains("tokenize"));
}

TEST_CASE("a long value is shown short and in whole characters", "[validation]") {
  v1::ChatRequest request;
  std::string role(39, 'x');
  for (int i = 0; i < 100; ++i) role += "é";
  request.add_messages()->set_role(role);
  try {
    check_messages(request.messages());
    FAIL("not refused");
  } catch (const InvalidInput& error) {
    CHECK_THAT(error.what(), Contains(std::string(39, 'x') + "…\""));
  }
}

}  // namespace
}  // namespace shoal
