// A real gRPC server over a fake engine, and a real client of it, in one process.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "server/front_end.h"
#include "server/grpc_server.h"
#include "shoal/v1/inference.grpc.pb.h"
#include "tests/server/fake_engine.h"
#include "tests/server/test_model.h"

namespace shoal {

struct ServiceFixture {
  explicit ServiceFixture(int64_t max_sequences = 1024, GrpcServerOptions options = {})
      : front_end(test_model(), test_tokenizer(), test_template(), engine,
                  AdmissionOptions{.max_sequences = max_sequences}),
        server(options, front_end) {
    server.set_serving(true);
    stub = v1::Inference::NewStub(channel());
  }

  // A connection of its own.
  std::shared_ptr<grpc::Channel> channel() const {
    grpc::ChannelArguments args;
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(server.address(), grpc::InsecureChannelCredentials(), args);
  }

  static v1::ChatRequest question(const std::string& text) {
    v1::ChatRequest request;
    v1::Message* message = request.add_messages();
    message->set_role("user");
    message->set_content(text);
    return request;
  }

  void answer_with(const std::string& text) { engine.set_answer(test_ids(text), kTestEnd); }
  void answer_without_end() { engine.set_answer({}, kTestEnd); }

  struct Answer {
    grpc::Status status;
    std::string content, reasoning;
    v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
    v1::Usage usage;
    int messages = 0;
    v1::ChatResponse last;
  };

  Answer chat(const v1::ChatRequest& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    return chat(request, &context);
  }

  Answer chat(const v1::ChatRequest& request, grpc::ClientContext* context) {
    Answer answer;
    const auto reader = stub->Chat(context, request);
    v1::ChatResponse response;
    while (reader->Read(&response)) {
      ++answer.messages;
      for (const v1::ChatOutput& output : response.outputs()) {
        if (output.index() != 0) continue;
        answer.content += output.content();
        answer.reasoning += output.reasoning_content();
        if (output.finish_reason() != 0) answer.finish_reason = output.finish_reason();
      }
      if (response.has_usage()) answer.usage = response.usage();
      answer.last = response;
    }
    answer.status = reader->Finish();
    return answer;
  }

  FakeEngine engine;
  FrontEnd front_end;
  GrpcServer server;
  std::unique_ptr<v1::Inference::Stub> stub;
};

// Waits, at most ten seconds, until it holds.
inline bool eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 1000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return condition();
}

}  // namespace shoal
