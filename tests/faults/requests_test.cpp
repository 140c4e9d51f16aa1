// Tests 1 to 4: what a request may say that is wrong, at its limits or strange.
#include <catch2/catch.hpp>

#include <cmath>
#include <limits>

#include "tests/faults/raw_connection.h"
#include "tests/faults/server.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;

constexpr int32_t kVocabulary = 1536, kContext = 2048;
constexpr char kComplete[] = "/shoal.v1.Inference/Complete";

const FaultServer& server() {
  static const FaultServer server;
  return server;
}

v1::ChatRequest question(const std::string& text, int max_tokens) {
  v1::ChatRequest request;
  v1::Message* message = request.add_messages();
  message->set_role("user");
  message->set_content(text);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

// A refusal is one short line, whatever was sent.
void check_refusal(const CallResult& result, Code code, const std::string& names) {
  INFO(names << ": " << static_cast<int>(result.code) << " " << result.message.substr(0, 2000));
  CHECK(result.code == code);
  CHECK_THAT(result.message, Contains(names));
  CHECK(result.message.size() < 1000);
  CHECK(result.message.find('\n') == std::string::npos);
  CHECK(result.messages == 0);
}

TEST_CASE("1: a token id outside the vocabulary is refused wherever it stands, and a neighbour does not notice") {
  const auto client = server().connect();
  Neighbour neighbour(server(), 600);
  Idle idle(server(), *client);
  neighbour.start();
  const int32_t ids[] = {-1, kVocabulary, 151645, INT32_MAX, INT32_MIN};
  uint64_t refused = 0;
  for (const int32_t id : ids) {
    const v1::CompleteRequest good = greedy({300, 301}, 4);
    v1::CompleteRequest request = good;
    request.mutable_token_ids()->add_ids(id);
    check_refusal(client->complete(request), Code::kInvalidArgument, "token_ids.ids[2]");
    request = good;
    request.mutable_sampling()->add_stop_token_ids(id);
    check_refusal(client->complete(request), Code::kInvalidArgument, "stop_token_ids");
    request = good;
    (*request.mutable_sampling()->mutable_logit_bias())[id] = 1;
    check_refusal(client->complete(request), Code::kInvalidArgument, "logit_bias");
    refused += 3;
    v1::DetokenizeRequest detokenize;
    detokenize.add_ids(id);
    check_refusal(client->detokenize(detokenize), Code::kInvalidArgument, "ids[0]");
  }
  CHECK(neighbour.difference() == "");
  CHECK(idle.difference() == "");
  CHECK(idle.ends().rejected == refused);
  CHECK(idle.ends().ok == 1);
}

TEST_CASE("2: numbers out of range are refused before anything is taken for them") {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  using Set = std::function<void(v1::SamplingParams*)>;
  std::vector<std::pair<std::string, Set>> table = {
      {"n is 1000000", [](auto* s) { s->set_n(1'000'000); }},
      {"n is 0", [](auto* s) { s->set_n(0); }},
      {"n is -1", [](auto* s) { s->set_n(-1); }},
      {"max_tokens is -1", [](auto* s) { s->set_max_tokens(-1); }},  // 2^32 - 1
      {"max_tokens is 2147483647", [](auto* s) { s->set_max_tokens(INT32_MAX); }},
      {"min_tokens is -1", [](auto* s) { s->set_min_tokens(-1); }},
      {"min_tokens is 2147483647", [](auto* s) { s->set_min_tokens(INT32_MAX); }},
      {"logprobs is -1", [](auto* s) { s->set_logprobs(-1); }},
      {"logprobs is 21", [](auto* s) { s->set_logprobs(21); }},
      {"top_k is -5", [](auto* s) { s->set_top_k(-5); }},
      {"stop has 100000", [](auto* s) { for (int i = 0; i < 100'000; ++i) s->add_stop("x"); }},
      {"stop[0] has 1048576", [](auto* s) { s->add_stop(std::string(1 << 20, 'x')); }},
      {"stop[0] has 0", [](auto* s) { s->add_stop(""); }},
      {"stop_token_ids has 65", [](auto* s) { for (int i = 0; i < 65; ++i) s->add_stop_token_ids(i); }},
      {"logit_bias has 1025", [](auto* s) { for (int i = 0; i < 1025; ++i) (*s->mutable_logit_bias())[i] = 1; }},
      {"logit_bias[5] is nan", [](auto* s) { (*s->mutable_logit_bias())[5] = kNan; }},
      {"logit_bias[5] is inf", [](auto* s) { (*s->mutable_logit_bias())[5] = kInf; }},
      {"logit_bias[5] is 101", [](auto* s) { (*s->mutable_logit_bias())[5] = 101; }},
  };
  const std::pair<std::string, void (v1::SamplingParams::*)(float)> floats[] = {
      {"temperature", &v1::SamplingParams::set_temperature},
      {"top_p", &v1::SamplingParams::set_top_p},
      {"min_p", &v1::SamplingParams::set_min_p},
      {"repetition_penalty", &v1::SamplingParams::set_repetition_penalty},
      {"presence_penalty", &v1::SamplingParams::set_presence_penalty},
      {"frequency_penalty", &v1::SamplingParams::set_frequency_penalty},
  };
  for (const auto& [name, set] : floats) {
    for (const float value : {kNan, kInf, -kInf, 1e30f, -1e30f}) {
      table.emplace_back(name, [set = set, value](auto* s) { (s->*set)(value); });
    }
  }
  table.emplace_back("top_p is -0", [](auto* s) { s->set_top_p(-0.0f); });
  table.emplace_back("repetition_penalty is -0", [](auto* s) { s->set_repetition_penalty(-0.0f); });

  const auto client = server().connect();
  const auto refuse_all = [&](bool check) {
    double slowest = 0;
    for (const auto& [names, set] : table) {
      v1::CompleteRequest request = greedy({300, 301}, 4);
      set(request.mutable_sampling());
      const CallResult result = client->complete(request);
      if (check) check_refusal(result, Code::kInvalidArgument, names);
      slowest = std::max(slowest, result.seconds);
    }
    return slowest;
  };
  refuse_all(true);
  Idle idle(server(), *client);
  constexpr int kRounds = 5;
  double slowest = 0;
  for (int i = 0; i < kRounds; ++i) slowest = std::max(slowest, refuse_all(false));
  WARN("slowest refusal: " << 1e3 * slowest << " ms");
  // The largest of these messages is 1 MB on the wire, so that much may lie in the allocator's arenas.
  CHECK(idle.difference(int64_t{16} << 20) == "");
  CHECK(idle.ends().rejected == kRounds * table.size());

  // A product that no single field shows. The context is too short for it here: what the fields allow is taken.
  v1::CompleteRequest request = greedy({300}, kContext - 1);
  request.mutable_sampling()->set_n(64);
  request.mutable_sampling()->set_logprobs(20);
  static_assert(int64_t{64} * (kContext - 1) * 21 < int64_t{1} << 22);
  CHECK(client->complete(request, {.deadline_seconds = 0.3}).code == Code::kDeadlineExceeded);
  CHECK(idle.difference() == "");

  // -0 is 0.
  request = greedy({300, 301}, 8);
  const CallResult zero = client->complete(request);
  request.mutable_sampling()->set_temperature(-0.0f);
  CHECK(client->complete(request).token_ids == zero.token_ids);
}

TEST_CASE("3: prompts that are missing, doubled, or as long as the context") {
  const auto client = server().connect();
  Idle idle(server(), *client);
  check_refusal(client->complete(v1::CompleteRequest()), Code::kInvalidArgument, "prompt is missing");
  v1::CompleteRequest empty;
  empty.mutable_token_ids();
  check_refusal(client->complete(empty), Code::kInvalidArgument, "prompt is empty");
  check_refusal(client->chat(v1::ChatRequest()), Code::kInvalidArgument, "messages is empty");

  v1::CompleteRequest fits = greedy(some_ids(1, kContext - 1), 1);
  const CallResult one = client->complete(fits);
  CHECK(one.code == Code::kOk);
  CHECK(one.token_ids.size() == 1);
  CHECK(one.usage.prompt_tokens() == kContext - 1);
  fits.mutable_sampling()->set_max_tokens(2);
  check_refusal(client->complete(fits), Code::kInvalidArgument, "leaves 1");
  for (const int length : {kContext, kContext + 1}) {
    check_refusal(client->complete(greedy(some_ids(1, length), 1)), Code::kInvalidArgument,
                  "the prompt has " + std::to_string(length) + " tokens");
  }

  // Both forms of a prompt on the wire: the last one counts, as protobuf says of a oneof.
  v1::CompleteRequest text;
  text.set_text("Hello");
  const CallResult both =
      client->raw(kComplete, text.SerializeAsString() + greedy({300, 301, 302}, 3).SerializeAsString());
  CHECK(both.code == Code::kOk);
  std::string reply;
  v1::CompleteRequest quiet = greedy({300, 301, 302}, 3);
  quiet.set_stream(false);
  CHECK(client->raw(kComplete, text.SerializeAsString() + quiet.SerializeAsString(), &reply).code == Code::kOk);
  v1::CompleteResponse response;
  REQUIRE(response.ParseFromString(reply));
  CHECK(response.usage().prompt_tokens() == 3);
  CHECK(idle.difference() == "");
}

TEST_CASE("4: names, ids and texts that are double, huge or not text") {
  const auto client = server().connect();
  Neighbour neighbour(server(), 600);
  Idle idle(server(), *client);
  neighbour.start();
  // The server makes the ids of calls itself, so none can be double; what a caller sends along is a label.
  std::string nul = "a\0b";
  nul.resize(3);
  for (const std::string& id : {std::string("same"), std::string(""), std::string(5000, 'x')}) {
    CallOptions labelled{.metadata = {{"x-request-id", id}, {"x-request-id", id}}};
    const auto first = client->open(greedy({300, 301}, 200), labelled);
    const CallResult second = client->complete(greedy({300, 301}, 200), labelled);
    CHECK(second.code == Code::kOk);
    CHECK(first->finish().token_ids == second.token_ids);
  }
  struct Row {
    const char* names;
    std::function<void(v1::ChatRequest*)> set;
    Code code = Code::kInvalidArgument;
  };
  const std::string huge(1 << 20, '"');
  const std::vector<Row> table = {
      {"model is", [&](auto* r) { r->set_model(huge); }, Code::kNotFound},
      {"model is", [&](auto* r) { r->set_model(nul); }, Code::kNotFound},
      {"model is", [&](auto* r) { r->set_model("a\nb\x1b[31m"); }, Code::kNotFound},
      {"messages[0].role", [&](auto* r) { r->mutable_messages(0)->set_role(huge); }},
      {"messages[0].role", [&](auto* r) { r->mutable_messages(0)->set_role(nul); }},
      {"tools[0]", [&](auto* r) { r->add_tools(huge); }},
      {"tools[0]", [&](auto* r) { r->add_tools(std::string(100'000, '[')); }},
      {"tools[0]", [&](auto* r) { r->add_tools("{\"" + std::string(100'000, 'k') + "\": 1}"); }},
      {"chat_template_kwargs", [&](auto* r) { (*r->mutable_chat_template_kwargs())[huge] = "true"; }},
      {"chat_template_kwargs", [&](auto* r) { (*r->mutable_chat_template_kwargs())["thinking"] = huge; }},
      {"UTF-8", [](auto* r) { r->mutable_messages(0)->set_content("\xc3\x28"); }},
      {"UTF-8", [](auto* r) { r->mutable_messages(0)->set_content("\xed\xa0\x80"); }},  // a surrogate
      {"UTF-8", [](auto* r) { r->mutable_messages(0)->set_content("\xc0\xaf"); }},      // overlong
      {"UTF-8", [](auto* r) { r->set_model("\xff"); }},
      {"UTF-8", [](auto* r) { r->mutable_sampling()->add_stop("\xff"); }},
  };
  for (const Row& row : table) {
    v1::ChatRequest request = question("Hello", 2);
    row.set(&request);
    check_refusal(client->chat(request), row.code, row.names);
  }
  // NUL is a character like others.
  CHECK(client->chat(question(nul, 2)).code == Code::kOk);
  v1::ChatRequest stop = question("Hello", 2);
  stop.mutable_sampling()->add_stop(nul);
  CHECK(client->chat(stop).code == Code::kOk);
  // No protobuf at all, and one that ends early.
  check_refusal(client->raw(kComplete, "\xff\xff\xff\xff"), Code::kInvalidArgument, "");
  const std::string whole = greedy({300, 301}, 2).SerializeAsString();
  for (size_t length = 0; length < whole.size(); ++length) {
    const CallResult cut = client->raw(kComplete, whole.substr(0, length));
    CHECK((cut.code == Code::kOk || cut.code == Code::kInvalidArgument));
  }
  // Fields that nobody knows are skipped, however many.
  std::string unknown;
  for (int i = 0; i < 100'000; ++i) unknown += "\xf8\x07\x01";  // field 127, varint 1
  CHECK(client->raw(kComplete, unknown + whole).code == Code::kOk);
  CHECK(neighbour.difference() == "");
  CHECK(idle.difference() == "");
}

}  // namespace
}  // namespace shoal
