// The real thing: `shoal serve` of the demo model on two ranks, and real gRPC clients.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <catch2/catch.hpp>

#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "shoal/v1/inference.grpc.pb.h"
#include "tests/e2e/server_process.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;
using std::chrono::system_clock;

// Far more than any call takes; the machine may be building beside.
constexpr std::chrono::seconds kPatience{120};

std::shared_ptr<grpc::Channel> new_channel() {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(DemoServer::instance().address,
                                   grpc::InsecureChannelCredentials(), args);
}

std::unique_ptr<v1::Inference::Stub> new_stub() { return v1::Inference::NewStub(new_channel()); }

v1::ChatRequest question(const std::string& text, int max_tokens) {
  v1::ChatRequest request;
  v1::Message* message = request.add_messages();
  message->set_role("user");
  message->set_content(text);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

struct Answer {
  grpc::Status status;
  std::string text;  // reasoning and content
  v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
  v1::Usage usage;
};

Answer chat(v1::Inference::Stub* stub, const v1::ChatRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + kPatience);
  Answer answer;
  const auto reader = stub->Chat(&context, request);
  v1::ChatResponse response;
  while (reader->Read(&response)) {
    for (const v1::ChatOutput& output : response.outputs()) {
      answer.text += output.reasoning_content() + output.content();
      if (output.finish_reason() != 0) answer.finish_reason = output.finish_reason();
    }
    if (response.has_usage()) answer.usage = response.usage();
  }
  answer.status = reader->Finish();
  return answer;
}

v1::GetStatusResponse server_status() {
  grpc::ClientContext context;
  v1::GetStatusResponse status;
  const grpc::Status result = new_stub()->GetStatus(&context, {}, &status);
  INFO(result.error_message());
  REQUIRE(result.ok());
  return status;
}

bool eventually(const std::function<bool()>& condition) {
  const auto deadline = system_clock::now() + kPatience;
  while (system_clock::now() < deadline) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return condition();
}

// A call of a method whose proto is not ours, bytes in and out.
std::string raw_call(const std::string& method, const std::string& request) {
  grpc::GenericStub stub(new_channel());
  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + kPatience);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareCall(&context, method, &queue);
  void* tag;
  bool ok;
  call->StartCall(nullptr);
  queue.Next(&tag, &ok);
  const grpc::Slice slice(request);
  call->WriteLast(grpc::ByteBuffer(&slice, 1), {}, nullptr);
  queue.Next(&tag, &ok);
  grpc::ByteBuffer reply;
  call->Read(&reply, nullptr);
  queue.Next(&tag, &ok);
  std::vector<grpc::Slice> slices;
  std::string text;
  if (ok && reply.Dump(&slices).ok()) {
    for (const grpc::Slice& part : slices) {
      text.append(reinterpret_cast<const char*>(part.begin()), part.size());
    }
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  return text;
}

TEST_CASE("a chat streams, and greedy answers repeat") {
  const auto stub = new_stub();
  v1::ChatRequest request = question("What is the capital of France?", 24);
  request.mutable_sampling()->set_temperature(0);
  const Answer first = chat(stub.get(), request);
  INFO(first.status.error_message());
  REQUIRE(first.status.ok());
  CHECK(first.usage.completion_tokens() > 0);
  CHECK(first.usage.completion_tokens() <= 24);
  CHECK(first.finish_reason != v1::FINISH_REASON_UNSPECIFIED);
  const Answer second = chat(stub.get(), request);
  CHECK(second.text == first.text);
}

TEST_CASE("samples of one seed repeat, of n differ only by seed") {
  const auto stub = new_stub();
  v1::ChatRequest request = question("Tell me a number", 12);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(7);
  request.mutable_sampling()->set_ignore_eos(true);
  const Answer first = chat(stub.get(), request);
  REQUIRE(first.status.ok());
  CHECK(first.finish_reason == v1::FINISH_REASON_LENGTH);
  CHECK(first.usage.completion_tokens() == 12);
  CHECK(chat(stub.get(), request).text == first.text);
  request.mutable_sampling()->set_n(3);
  request.mutable_sampling()->set_logprobs(2);
  const Answer three = chat(stub.get(), request);
  REQUIRE(three.status.ok());
  CHECK(three.usage.completion_tokens() == 36);
}

TEST_CASE("health and reflection answer") {
  // HealthCheckRequest{service = 1: string}, HealthCheckResponse{status = 1: SERVING = 1}.
  DemoServer::instance();
  CHECK(raw_call("/grpc.health.v1.Health/Check", "") == std::string("\x08\x01"));
  const std::string name = "shoal.v1.Inference";
  CHECK(raw_call("/grpc.health.v1.Health/Check",
                 std::string("\x0a") + static_cast<char>(name.size()) + name) ==
        std::string("\x08\x01"));
  CHECK(raw_call("/grpc.health.v1.Health/Check", "\x0a\x04none").empty());
  // ServerReflectionRequest{list_services = 7: string}.
  const std::string services =
      raw_call("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "\x3a\x01*");
  CHECK_THAT(services, Contains("shoal.v1.Inference") && Contains("grpc.health.v1.Health"));
}

TEST_CASE("model and status describe what is served") {
  grpc::ClientContext context;
  v1::GetModelResponse model;
  REQUIRE(new_stub()->GetModel(&context, {}, &model).ok());
  CHECK(model.architecture() == "DeepseekV3ForCausalLM");
  CHECK(model.context_length() > 0);
  const v1::GetStatusResponse status = server_status();
  CHECK(status.state() == v1::SERVER_STATE_READY);
  CHECK(status.world_size() == 2);
  CHECK(status.ranks_size() == 2);
  CHECK(status.kv_pages_total() > 0);
}

TEST_CASE("bad input gets one clear line and leaves the server serving") {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  struct Row {
    const char* names;
    std::function<void(v1::ChatRequest&)> set;
    grpc::StatusCode code = grpc::StatusCode::INVALID_ARGUMENT;
  };
  const std::vector<Row> table = {
      {"messages is empty", [](auto& r) { r.clear_messages(); }},
      {"messages[0].role", [](auto& r) { r.mutable_messages(0)->set_role("robot"); }},
      {"context",
       [](auto& r) {
         std::string text;
         for (int i = 0; i < 20000; ++i) text += std::to_string(i) + " ";
         r.mutable_messages(0)->set_content(text);
       }},
      {"max_tokens is 0", [](auto& r) { r.mutable_sampling()->set_max_tokens(0); }},
      {"max_tokens is -7", [](auto& r) { r.mutable_sampling()->set_max_tokens(-7); }},
      {"max_tokens is 2147483647",
       [](auto& r) { r.mutable_sampling()->set_max_tokens(INT32_MAX); }},
      {"temperature is nan", [](auto& r) { r.mutable_sampling()->set_temperature(kNan); }},
      {"top_p is 2", [](auto& r) { r.mutable_sampling()->set_top_p(2); }},
      {"n is 10000", [](auto& r) { r.mutable_sampling()->set_n(10000); }},
      {"logit_bias", [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[1 << 30] = 1; }},
      {"stop_token_ids", [](auto& r) { r.mutable_sampling()->add_stop_token_ids(151645); }},
      {"stop has 1000",
       [](auto& r) {
         for (int i = 0; i < 1000; ++i) r.mutable_sampling()->add_stop("x");
       }},
      {"not valid UTF-8", [](auto& r) { r.mutable_messages(0)->set_content("\xc3\x28"); }},
      {"larger than max",
       [](auto& r) { r.mutable_messages(0)->set_content(std::string(10 << 20, 'x')); },
       grpc::StatusCode::RESOURCE_EXHAUSTED},
  };
  const auto stub = new_stub();
  for (const Row& row : table) {
    v1::ChatRequest request = question("Hello", 2);
    row.set(request);
    const Answer answer = chat(stub.get(), request);
    INFO(row.names);
    CHECK(answer.status.error_code() == row.code);
    CHECK_THAT(answer.status.error_message(), Contains(row.names));
    CHECK(answer.status.error_message().find('\n') == std::string::npos);
    CHECK(chat(stub.get(), question("Hello", 2)).status.ok());
  }
}

TEST_CASE("a client that vanishes gives its pages back") {
  {
    const auto stub = new_stub();
    grpc::ClientContext context;
    v1::ChatRequest request = question("Count as far as you can", 1000);
    request.mutable_sampling()->set_ignore_eos(true);
    const auto reader = stub->Chat(&context, request);
    v1::ChatResponse response;
    REQUIRE(reader->Read(&response));
    context.TryCancel();
    reader->Finish();
  }
  CHECK(eventually([] {
    const v1::GetStatusResponse status = server_status();
    return status.streams_open() == 0 && status.requests_running() == 0 &&
           status.kv_pages_used() == 0;
  }));
}

TEST_CASE("a passed deadline ends the call and frees its pages") {
  const auto stub = new_stub();
  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + std::chrono::milliseconds(200));
  v1::ChatRequest request = question("Count as far as you can", 1500);
  request.mutable_sampling()->set_ignore_eos(true);
  const auto reader = stub->Chat(&context, request);
  v1::ChatResponse response;
  while (reader->Read(&response)) {
  }
  CHECK(reader->Finish().error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
  CHECK(eventually([] {
    const v1::GetStatusResponse status = server_status();
    return status.streams_open() == 0 && status.kv_pages_used() == 0;
  }));
}

TEST_CASE("500 clients at once all get their answer") {
  const auto stub = new_stub();
  struct Pending {
    grpc::ClientContext context;
    v1::ChatResponse response;
    grpc::Status status;
    std::unique_ptr<grpc::ClientAsyncReader<v1::ChatResponse>> reader;
    bool finishing = false;
  };
  constexpr int kClients = 500;
  grpc::CompletionQueue queue;
  std::vector<std::unique_ptr<Pending>> pending;
  for (int i = 0; i < kClients; ++i) {
    pending.push_back(std::make_unique<Pending>());
    Pending& call = *pending.back();
    call.reader =
        stub->AsyncChat(&call.context, question("Question " + std::to_string(i), 4), &queue, &call);
  }
  int done = 0, right = 0;
  void* tag;
  bool ok;
  while (done < kClients && queue.Next(&tag, &ok)) {
    auto* call = static_cast<Pending*>(tag);
    if (call->finishing) {
      ++done;
      right += call->status.ok() && call->response.has_usage();
    } else if (!ok) {
      call->finishing = true;
      call->reader->Finish(&call->status, call);
    } else {
      call->reader->Read(&call->response, call);
    }
  }
  CHECK(right == kClients);
}

TEST_CASE("a stream goes on, token for token, after its ranks were killed") {
  const auto stub = new_stub();
  v1::ChatRequest request = question("Count as far as you can", 1200);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  const Answer expected = chat(stub.get(), request);
  REQUIRE(expected.status.ok());
  const int restarts = server_status().engine_restarts();

  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + kPatience);
  const auto reader = stub->Chat(&context, request);
  v1::ChatResponse response;
  std::string text;
  bool killed = false;
  while (reader->Read(&response)) {
    for (const v1::ChatOutput& output : response.outputs()) {
      text += output.reasoning_content() + output.content();
    }
    if (!std::exchange(killed, true)) {
      kill(descendants(DemoServer::instance().process.pid()).back(), SIGKILL);
    }
  }
  const grpc::Status status = reader->Finish();
  INFO(status.error_message());
  REQUIRE(status.ok());
  CHECK(text == expected.text);
  CHECK(response.usage().completion_tokens() == 1200);
  CHECK(server_status().engine_restarts() == restarts + 1);
}

TEST_CASE("an idle server sleeps") {
  const DemoServer& server = DemoServer::instance();
  constexpr int kSeconds = 6;
  constexpr double kShareOfOneCore = 0.02;
  const double before = cpu_seconds(server.process.pid());
  std::this_thread::sleep_for(std::chrono::seconds(kSeconds));
  const double used = cpu_seconds(server.process.pid()) - before;
  CHECK(before > 0);
  CHECK(used < kShareOfOneCore * kSeconds);
}

}  // namespace
}  // namespace shoal
