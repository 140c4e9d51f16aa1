#include "server/chat_client.h"

#include <grpcpp/grpcpp.h>

#include <mutex>
#include <thread>

#include "kernels/base/error.h"
#include "shoal/v1/inference.grpc.pb.h"

namespace shoal {
namespace {

constexpr std::chrono::seconds kShortCall{5};  // of calls that only ask for a state
using SteadyClock = std::chrono::steady_clock;

double seconds_since(SteadyClock::time_point begin) {
  return std::chrono::duration<double>(SteadyClock::now() - begin).count();
}

}  // namespace

struct ChatClient::Wire {
  std::unique_ptr<v1::Inference::Stub> stub;
  std::mutex mutex;
  grpc::ClientContext* answering = nullptr;  // guarded by mutex
};

ChatClient::ChatClient(const ServerAddress& address)
    : wire_(std::make_unique<Wire>()), address_(address) {
  wire_->stub = v1::Inference::NewStub(open_channel(address));
}

ChatClient::~ChatClient() = default;

v1::GetModelResponse ChatClient::connect(const std::function<void(const std::string&)>& on_wait) {
  const auto call = [&](auto method, const auto& request, auto* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kShortCall);
    authorize(address_, &context);
    const grpc::Status status = (wire_->stub.get()->*method)(&context, request, response);
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
        status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      throw_invalid("no server answers at {} ({}); start one with `shoal serve --model ...`",
                    address_.server, status.error_message());
    }
    if (!status.ok()) throw_invalid("{}: {}", address_.server, status.error_message());
  };
  std::string told;  // the same state is not told twice: a pipe has no line to write over
  while (true) {
    v1::GetStatusResponse status;
    call(&v1::Inference::Stub::GetStatus, v1::GetStatusRequest(), &status);
    if (status.state() == v1::SERVER_STATE_FAILED || status.state() == v1::SERVER_STATE_DRAINING) {
      throw_invalid("the server at {} is not serving: {}", address_.server, status.detail());
    }
    if (status.state() != v1::SERVER_STATE_LOADING) break;
    const std::string now = status.detail().empty() ? "starting its ranks" : status.detail();
    if (now != told) on_wait(now);
    told = now;
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  v1::GetModelResponse model;
  call(&v1::Inference::Stub::GetModel, v1::GetModelRequest(), &model);
  return model;
}

ChatAnswer ChatClient::ask(
    const v1::ChatRequest& request, double timeout,
    const std::function<void(const std::string&, const std::string&)>& on_delta) {
  ChatAnswer answer;
  const SteadyClock::time_point begin = SteadyClock::now();
  grpc::ClientContext context;
  authorize(address_, &context);
  if (timeout > 0) {
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(static_cast<int64_t>(timeout * 1000)));
  }
  {
    std::lock_guard lock(wire_->mutex);
    wire_->answering = &context;
  }
  const auto reader = wire_->stub->Chat(&context, request);
  v1::ChatResponse response;
  while (reader->Read(&response)) {
    if (answer.first_token_seconds == 0) answer.first_token_seconds = seconds_since(begin);
    for (const v1::ChatOutput& output : response.outputs()) {
      answer.reasoning += output.reasoning_content();
      answer.content += output.content();
      if (output.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
        answer.finish_reason = output.finish_reason();
      }
      on_delta(output.reasoning_content(), output.content());
    }
    if (response.has_usage()) answer.usage = response.usage();
  }
  const grpc::Status status = reader->Finish();
  {
    std::lock_guard lock(wire_->mutex);
    wire_->answering = nullptr;
  }
  answer.total_seconds = seconds_since(begin);
  answer.cancelled = status.error_code() == grpc::StatusCode::CANCELLED;
  if (!status.ok() && !answer.cancelled) answer.error = status.error_message();
  return answer;
}

bool ChatClient::cancel() {
  std::lock_guard lock(wire_->mutex);
  if (wire_->answering == nullptr) return false;
  wire_->answering->TryCancel();
  return true;
}

}  // namespace shoal
