// What clients get, through a real gRPC connection, from a scripted engine.
#include <catch2/catch.hpp>

#include <map>
#include <set>

#include "tests/server/service_fixture.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;

TEST_CASE("an answer streams as deltas, with usage at the end", "[service]") {
  ServiceFixture fixture;
  fixture.answer_with("The capital of France is Paris, and 日本 🦭 too.");
  const auto answer = fixture.chat(fixture.question("Hello"));
  REQUIRE(answer.status.ok());
  CHECK(answer.content == "The capital of France is Paris, and 日本 🦭 too.");
  CHECK(answer.finish_reason == v1::FINISH_REASON_STOP);
  CHECK(answer.messages > 1);
  CHECK(answer.usage.prompt_tokens() ==
        static_cast<int32_t>(test_ids("user: Hello\nassistant: ").size()));
  CHECK(answer.usage.completion_tokens() ==
        static_cast<int32_t>(test_ids(answer.content).size()) + 1);
  CHECK(answer.usage.cached_tokens() == 1);
  CHECK(answer.last.model() == "test/model");
  CHECK_THAT(answer.last.id(), Contains("chat-"));
  CHECK(answer.last.outputs(0).stop_token_id() == kTestEnd);
}

TEST_CASE("stream = false gives one message", "[service]") {
  ServiceFixture fixture;
  fixture.answer_with("All of it at once.");
  v1::ChatRequest request = fixture.question("Hello");
  request.set_stream(false);
  const auto answer = fixture.chat(request);
  REQUIRE(answer.status.ok());
  CHECK(answer.messages == 1);
  CHECK(answer.content == "All of it at once.");
  CHECK(answer.usage.completion_tokens() > 0);
}

TEST_CASE("reasoning comes apart from content", "[service]") {
  ServiceFixture fixture;
  fixture.answer_with("two and two</think>\n\nFour.");
  v1::ChatRequest request = fixture.question("2+2?");
  (*request.mutable_chat_template_kwargs())["thinking"] = "true";
  const auto answer = fixture.chat(request);
  REQUIRE(answer.status.ok());
  CHECK(answer.reasoning == "two and two");
  CHECK(answer.content == "Four.");
  CHECK(answer.usage.reasoning_tokens() > 0);
  CHECK(answer.usage.reasoning_tokens() < answer.usage.completion_tokens());
}

TEST_CASE("a stop string ends the stream and the engine's work", "[service]") {
  ServiceFixture fixture;
  fixture.answer_with("one two three four five six seven eight nine ten");
  v1::ChatRequest request = fixture.question("Count");
  request.mutable_sampling()->add_stop("thr");
  const auto answer = fixture.chat(request);
  REQUIRE(answer.status.ok());
  CHECK(answer.content == "one two ");
  CHECK(answer.last.outputs(0).stop_string() == "thr");
  CHECK(answer.finish_reason == v1::FINISH_REASON_STOP);
  REQUIRE(fixture.engine.wait_idle());
  CHECK(fixture.front_end.status().calls_ok() == 1);
}

TEST_CASE("n samples are told apart by index and have seeds of their own", "[service]") {
  ServiceFixture fixture;
  fixture.answer_with("Same for all.");
  v1::ChatRequest request = fixture.question("Hello");
  request.mutable_sampling()->set_n(3);
  request.mutable_sampling()->set_seed(~uint64_t{0});  // the next seed wraps
  request.set_stream(false);
  const auto answer = fixture.chat(request);
  REQUIRE(answer.status.ok());
  REQUIRE(answer.last.outputs_size() == 3);
  std::set<uint32_t> indices;
  for (const v1::ChatOutput& output : answer.last.outputs()) {
    indices.insert(output.index());
    CHECK(output.content() == "Same for all.");
  }
  CHECK(indices == std::set<uint32_t>{0, 1, 2});
  std::set<uint64_t> seeds, ids;
  for (const Request& submitted : fixture.engine.submitted()) {
    seeds.insert(submitted.sampling.seed);
    ids.insert(submitted.id);
  }
  CHECK(seeds == std::set<uint64_t>{~uint64_t{0}, 0, 1});
  CHECK(ids.size() == 3);
  CHECK(answer.usage.completion_tokens() ==
        3 * (static_cast<int32_t>(test_ids("Same for all.").size()) + 1));
}

TEST_CASE("logprobs come with each token and its alternatives", "[service]") {
  ServiceFixture fixture;
  fixture.answer_with("Hi there");
  v1::ChatRequest request = fixture.question("Hello");
  request.mutable_sampling()->set_logprobs(2);
  request.set_stream(false);
  const auto answer = fixture.chat(request);
  REQUIRE(answer.status.ok());
  const v1::ChatOutput& output = answer.last.outputs(0);
  CHECK(output.logprobs_size() == answer.usage.completion_tokens());
  CHECK(output.logprobs(0).logprob() == -0.5f);
  CHECK(output.logprobs(0).top_size() == 2);
  std::string text;
  for (const v1::TokenLogprob& token : output.logprobs()) {
    if (token.token_id() != kTestEnd) text += token.token();
  }
  CHECK(text == "Hi there");
}

TEST_CASE("complete takes text or token ids and gives token ids", "[service]") {
  ServiceFixture fixture;
  fixture.answer_with("tail");
  v1::CompleteRequest request;
  const bool as_text = GENERATE(true, false);
  if (as_text) {
    request.set_text("head");
  } else {
    for (const int32_t id : test_ids("head")) request.mutable_token_ids()->add_ids(id);
  }
  grpc::ClientContext context;
  const auto reader = fixture.stub->Complete(&context, request);
  v1::CompleteResponse response;
  std::string text;
  std::vector<int32_t> ids;
  while (reader->Read(&response)) {
    for (const v1::CompleteOutput& output : response.outputs()) {
      text += output.text();
      ids.insert(ids.end(), output.token_ids().begin(), output.token_ids().end());
    }
  }
  REQUIRE(reader->Finish().ok());
  CHECK(text == "tail");
  std::vector<int32_t> expected = test_ids("tail");
  expected.push_back(kTestEnd);
  CHECK(ids == expected);
  const std::vector<int32_t> prompt = fixture.engine.submitted().at(0).tokens;
  CHECK(std::vector<int32_t>(prompt.end() - test_ids("head").size(), prompt.end()) ==
        test_ids("head"));
}

TEST_CASE("tokenize and detokenize are each other's inverse", "[service]") {
  ServiceFixture fixture;
  v1::TokenizeRequest request;
  request.set_text("Hello, 世界!");
  request.set_add_special_tokens(false);
  v1::TokenizeResponse tokens;
  grpc::ClientContext first, second, third;
  REQUIRE(fixture.stub->Tokenize(&first, request, &tokens).ok());
  CHECK(std::vector<int32_t>(tokens.ids().begin(), tokens.ids().end()) == test_ids("Hello, 世界!"));
  v1::DetokenizeRequest back;
  *back.mutable_ids() = tokens.ids();
  v1::DetokenizeResponse text;
  REQUIRE(fixture.stub->Detokenize(&second, back, &text).ok());
  CHECK(text.text() == "Hello, 世界!");
  *request.mutable_conversation()->mutable_messages() = fixture.question("Hi").messages();
  REQUIRE(fixture.stub->Tokenize(&third, request, &tokens).ok());
  CHECK(tokens.rendered() == "user: Hi\nassistant: ");
}

TEST_CASE("model and status say what is served", "[service]") {
  ServiceFixture fixture;
  grpc::ClientContext first, second;
  v1::GetModelResponse model;
  REQUIRE(fixture.stub->GetModel(&first, {}, &model).ok());
  CHECK(model.name() == "test/model");
  CHECK(model.context_length() == 512);
  CHECK(model.has_chat_template());
  CHECK(model.default_sampling().temperature() == 1);
  v1::GetStatusResponse status;
  REQUIRE(fixture.stub->GetStatus(&second, {}, &status).ok());
  CHECK(status.state() == v1::SERVER_STATE_READY);
  CHECK(status.world_size() == 1);
}

TEST_CASE("while the model loads calls are refused and states are told", "[service]") {
  ServiceFixture fixture;
  fixture.engine.set_context(0);  // not known yet
  fixture.engine.set_state(EngineState::kLoading, "40 %");
  auto answer = fixture.chat(fixture.question("Hello"));
  CHECK(answer.status.error_code() == grpc::StatusCode::UNAVAILABLE);
  CHECK_THAT(answer.status.error_message(), Contains("loading (40 %)"));
  CHECK(fixture.front_end.status().state() == v1::SERVER_STATE_LOADING);
  fixture.engine.set_state(EngineState::kFailed, "no such file");
  answer = fixture.chat(fixture.question("Hello"));
  CHECK(answer.status.error_code() == grpc::StatusCode::UNAVAILABLE);
  CHECK_THAT(answer.status.error_message(), Contains("no such file"));
}

TEST_CASE("a stream pauses while the engine restarts, and goes on", "[service]") {
  ServiceFixture fixture;
  fixture.answer_with("before and after");
  fixture.engine.set_state(EngineState::kRestarting);
  fixture.engine.pause(true);
  std::thread resume([&] {
    eventually([&] { return fixture.engine.live() == 1; });
    fixture.engine.set_state(EngineState::kReady);
    fixture.engine.pause(false);
  });
  const auto answer = fixture.chat(fixture.question("Hello"));
  resume.join();
  REQUIRE(answer.status.ok());
  CHECK(answer.content == "before and after");
}

TEST_CASE("an engine's error becomes the status of its call", "[service]") {
  ServiceFixture fixture;
  fixture.engine.pause(true);
  std::thread fail([&] {
    eventually([&] { return fixture.engine.live() == 1; });
    fixture.engine.fail_all("logits are not numbers");
  });
  const auto answer = fixture.chat(fixture.question("Hello"));
  fail.join();
  CHECK(answer.status.error_code() == grpc::StatusCode::INTERNAL);
  CHECK_THAT(answer.status.error_message(), Contains("logits are not numbers"));
  CHECK(fixture.front_end.status().calls_failed() == 1);
}

TEST_CASE("with a key only those who have it may call", "[service]") {
  GrpcServerOptions options;
  options.guard.api_key = "secret";
  ServiceFixture fixture(1024, options);
  fixture.answer_with("Hi");
  CHECK(fixture.chat(fixture.question("Hello")).status.error_code() ==
        grpc::StatusCode::UNAUTHENTICATED);
  for (const auto& [value, right] : std::map<std::string, bool>{{"Bearer secret", true},
                                                                {"Bearer secrets", false},
                                                                {"Bearer ", false},
                                                                {"secret", false}}) {
    grpc::ClientContext context, status_context;
    context.AddMetadata("authorization", value);
    status_context.AddMetadata("authorization", value);
    CHECK(fixture.chat(fixture.question("Hello"), &context).status.ok() == right);
    v1::GetStatusResponse status;
    CHECK(fixture.stub->GetStatus(&status_context, {}, &status).ok() == right);
  }
}

}  // namespace
}  // namespace shoal
