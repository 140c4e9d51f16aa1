// Clients that err, vanish, dawdle or come in crowds, through a real gRPC connection.
#include <catch2/catch.hpp>

#include "tests/server/service_fixture.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;
using std::chrono::milliseconds;

TEST_CASE("a wrong request is refused by name and the next one served", "[service][bad-input]") {
  ServiceFixture fixture;
  fixture.answer_with("Hi");
  struct Row {
    const char* names;
    std::function<void(v1::ChatRequest&)> set;
  };
  const std::vector<Row> table = {
      {"messages is empty", [](auto& r) { r.clear_messages(); }},
      {"messages[0].role", [](auto& r) { r.mutable_messages(0)->set_role("robot"); }},
      {"the prompt has",
       [](auto& r) {
         std::string text;
         for (int i = 0; i < 600; ++i) text += " many different words";
         r.mutable_messages(0)->set_content(text);
       }},
      {"bytes", [](auto& r) { r.mutable_messages(0)->set_content(std::string(3 << 20, 'x')); }},
      {"sampling.max_tokens is 0", [](auto& r) { r.mutable_sampling()->set_max_tokens(0); }},
      {"sampling.max_tokens is 510", [](auto& r) { r.mutable_sampling()->set_max_tokens(510); }},
      {"sampling.top_p is 2", [](auto& r) { r.mutable_sampling()->set_top_p(2); }},
      {"priority is 101", [](auto& r) { r.set_priority(101); }},
      {"chat_template_kwargs", [](auto& r) { (*r.mutable_chat_template_kwargs())["x"] = "1"; }},
  };
  for (const Row& row : table) {
    v1::ChatRequest request = fixture.question("Hello");
    row.set(request);
    const auto answer = fixture.chat(request);
    INFO(row.names);
    CHECK(answer.status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    CHECK_THAT(answer.status.error_message(), Contains(row.names));
    CHECK(fixture.chat(fixture.question("Hello")).content == "Hi");
  }
  v1::ChatRequest request = fixture.question("Hello");
  request.set_model("other/model");
  CHECK(fixture.chat(request).status.error_code() == grpc::StatusCode::NOT_FOUND);
  CHECK(fixture.front_end.status().calls_rejected() == table.size() + 1);
}

TEST_CASE("token ids of a prompt must be of the vocabulary", "[service][bad-input]") {
  ServiceFixture fixture;
  v1::CompleteRequest request;
  const int32_t id = GENERATE(-1, test_model().vocab_size, INT32_MAX);
  request.mutable_token_ids()->add_ids(5);
  request.mutable_token_ids()->add_ids(id);
  grpc::ClientContext context;
  const grpc::Status status = fixture.stub->Complete(&context, request)->Finish();
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK_THAT(status.error_message(), Contains("token_ids.ids[1]"));
}

TEST_CASE("text that is not UTF-8 is refused by name", "[service][bad-input]") {
  ServiceFixture fixture;
  fixture.answer_with("Hi");
  const auto answer = fixture.chat(fixture.question("a\xff\xfe"));
  CHECK(answer.status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK_THAT(answer.status.error_message(),
             Contains("shoal.v1.Message.content is not valid UTF-8"));
  CHECK(fixture.chat(fixture.question("Hello")).content == "Hi");
}

TEST_CASE("a message of 10 MB is refused and the server goes on", "[service][bad-input]") {
  ServiceFixture fixture;
  fixture.answer_with("Hi");
  const auto answer = fixture.chat(fixture.question(std::string(10 << 20, 'x')));
  CHECK(answer.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK_THAT(answer.status.error_message(), Contains("larger than max"));
  CHECK(fixture.chat(fixture.question("Hello")).content == "Hi");
}

TEST_CASE("a client that cancels frees its work", "[service]") {
  ServiceFixture fixture;
  fixture.answer_without_end();
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    const auto reader = fixture.stub->Chat(&context, fixture.question("Hello"));
    v1::ChatResponse response;
    if (i % 2 == 0) REQUIRE(reader->Read(&response));  // the others cancel at once
    context.TryCancel();
    CHECK(reader->Finish().error_code() == grpc::StatusCode::CANCELLED);
  }
  REQUIRE(fixture.engine.wait_idle());
  REQUIRE(eventually([&] { return fixture.front_end.status().streams_open() == 0; }));
}

TEST_CASE("a passed deadline frees the work and is counted apart", "[service]") {
  ServiceFixture fixture;
  fixture.engine.pause(true);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(100));
  const auto answer = fixture.chat(fixture.question("Hello"), &context);
  CHECK(answer.status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
  fixture.engine.pause(false);
  REQUIRE(fixture.engine.wait_idle());
  REQUIRE(eventually([&] { return fixture.front_end.status().calls_deadline_exceeded() == 1; }));
  CHECK(fixture.front_end.status().streams_open() == 0);
}

TEST_CASE("an engine that fails for good ends running calls as unavailable", "[service]") {
  ServiceFixture fixture;
  fixture.engine.pause(true);
  fixture.answer_with("Hi");
  grpc::ClientContext context;
  const auto reader = fixture.stub->Chat(&context, fixture.question("Hello"));
  REQUIRE(eventually([&] { return fixture.engine.live() == 1; }));
  fixture.engine.set_state(EngineState::kFailed, "the ranks died 4 times");
  fixture.engine.fail_all("engine failed: the ranks died 4 times");
  v1::ChatResponse response;
  while (reader->Read(&response)) {
  }
  const grpc::Status status = reader->Finish();
  CHECK(status.error_code() == grpc::StatusCode::UNAVAILABLE);
  CHECK_THAT(status.error_message(), Contains("the ranks died 4 times"));
}

TEST_CASE("a long answer that is not streamed is not taken for a reader that stalls", "[service]") {
  ServiceFixture fixture;
  fixture.engine.set_context(40000);
  fixture.answer_without_end();
  v1::ChatRequest request = fixture.question("Hello");
  request.set_stream(false);
  request.mutable_sampling()->set_max_tokens(30000);
  const auto answer = fixture.chat(request);
  INFO(answer.status.error_message());
  CHECK(answer.status.ok());
  CHECK(answer.usage.completion_tokens() == 30000);
}

TEST_CASE("more than the queue holds is refused at once with a hint", "[service]") {
  ServiceFixture fixture(3);
  fixture.engine.pause(true);
  fixture.answer_with("Hi");
  v1::ChatRequest three = fixture.question("Hello");
  three.mutable_sampling()->set_n(3);
  grpc::ClientContext first;
  const auto reader = fixture.stub->Chat(&first, three);
  REQUIRE(eventually([&] { return fixture.engine.live() == 3; }));
  grpc::ClientContext context;
  const auto answer = fixture.chat(fixture.question("Hello"), &context);
  CHECK(answer.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms") == 1);
  fixture.engine.pause(false);
  v1::ChatResponse response;
  while (reader->Read(&response)) {
  }
  CHECK(reader->Finish().ok());
  REQUIRE(fixture.engine.wait_idle());
  CHECK(fixture.chat(fixture.question("Hello")).content == "Hi");
}

TEST_CASE("a client that never reads is ended and delays nobody", "[service]") {
  ServiceFixture fixture;
  fixture.answer_without_end();
  grpc::ClientContext context;
  v1::ChatRequest flood = fixture.question("Hello");
  flood.mutable_sampling()->set_n(32);
  flood.mutable_sampling()->set_logprobs(20);  // enough bytes to fill every buffer in between
  const auto reader = fixture.stub->Chat(&context, flood);
  REQUIRE(eventually([&] { return fixture.engine.live() == 32; }));
  fixture.answer_with("Hi");
  CHECK(fixture.chat(fixture.question("Hello")).content == "Hi");
  REQUIRE(eventually([&] {
    fixture.front_end.book().end_stalled(milliseconds(200));
    return fixture.front_end.status().streams_open() == 0;
  }));
  REQUIRE(fixture.engine.wait_idle());
  CHECK(fixture.front_end.status().calls_failed() == 1);
  context.TryCancel();
}

TEST_CASE("500 clients at once all get their answer", "[service]") {
  ServiceFixture fixture;
  fixture.answer_with("Hi there, all of you.");
  int right = 0;
  const auto stub = v1::Inference::NewStub(fixture.channel());
  grpc::CompletionQueue queue;
  struct Pending {
    grpc::ClientContext context;
    v1::ChatResponse response;
    grpc::Status status;
    std::unique_ptr<grpc::ClientAsyncReader<v1::ChatResponse>> reader;
    std::string content;
    bool finishing = false;
  };
  std::vector<std::unique_ptr<Pending>> pending;
  for (int i = 0; i < 500; ++i) {
    pending.push_back(std::make_unique<Pending>());
    Pending& call = *pending.back();
    call.reader = stub->AsyncChat(&call.context, fixture.question("Hello"), &queue, &call);
  }
  int done = 0;
  void* tag;
  bool ok;
  while (done < 500 && queue.Next(&tag, &ok)) {
    auto* call = static_cast<Pending*>(tag);
    if (call->finishing) {
      ++done;
      right += call->status.ok() && call->content == "Hi there, all of you.";
    } else if (!ok) {
      call->finishing = true;
      call->reader->Finish(&call->status, call);
    } else {
      for (const v1::ChatOutput& output : call->response.outputs())
        call->content += output.content();
      call->response.Clear();
      call->reader->Read(&call->response, call);
    }
  }
  CHECK(right == 500);
  REQUIRE(fixture.engine.wait_idle());
  CHECK(fixture.front_end.status().calls_ok() == 500);
}

TEST_CASE("at the end running calls finish and new ones are refused", "[service]") {
  ServiceFixture fixture;
  fixture.answer_with("To the end.");
  fixture.engine.pause(true);
  ServiceFixture::Answer answer;
  std::thread client([&] { answer = fixture.chat(fixture.question("Hello")); });
  REQUIRE(eventually([&] { return fixture.engine.live() == 1; }));
  fixture.server.set_serving(false);
  fixture.front_end.drain();
  CHECK(fixture.chat(fixture.question("Hello")).status.error_code() ==
        grpc::StatusCode::UNAVAILABLE);
  CHECK(fixture.front_end.status().state() == v1::SERVER_STATE_DRAINING);
  fixture.engine.pause(false);
  fixture.server.shutdown(milliseconds(10'000));
  client.join();
  REQUIRE(answer.status.ok());
  CHECK(answer.content == "To the end.");
}

TEST_CASE("a port in use is one clear line", "[service][bad-input]") {
  ServiceFixture fixture;
  GrpcServerOptions options;
  options.port = std::stoi(fixture.server.address().substr(fixture.server.address().find(':') + 1));
  REQUIRE_THROWS_WITH(GrpcServer(options, fixture.front_end),
                      Contains("cannot listen on 127.0.0.1") && Contains("Address already in use"));
  options.host = "no.such.host.invalid";
  REQUIRE_THROWS_WITH(GrpcServer(options, fixture.front_end), Contains("no.such.host.invalid"));
}

}  // namespace
}  // namespace shoal
