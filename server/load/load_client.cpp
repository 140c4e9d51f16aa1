#include "server/load/load_client.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <thread>

#include "kernels/base/error.h"
#include "shoal/v1/inference.grpc.pb.h"

namespace shoal {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kShortCall{10};  // of calls that do not generate

double seconds_between(LoadTime begin, LoadTime end) {
  return std::chrono::duration<double>(end - begin).count();
}

// New tokens in a message. Chat says how many only at the end: a message with text counts as one
// until then.
int32_t new_tokens(const v1::CompleteResponse& response) {
  int32_t count = 0;
  for (const auto& output : response.outputs()) count += output.token_ids_size();
  return count;
}
int32_t new_tokens(const v1::ChatResponse& response) {
  for (const auto& output : response.outputs()) {
    if (!output.content().empty() || !output.reasoning_content().empty()) return 1;
  }
  return 0;
}

void keep(const v1::CompleteResponse& response, LoadAnswer* answer) {
  for (const auto& output : response.outputs()) {
    answer->ids.insert(answer->ids.end(), output.token_ids().begin(), output.token_ids().end());
  }
}
void keep(const v1::ChatResponse& response, LoadAnswer* answer) {
  for (const auto& output : response.outputs()) answer->text += output.content();
}

void fill(const LoadCall& call, v1::CompleteRequest* request) {
  request->mutable_token_ids()->mutable_ids()->Add(call.prompt.begin(), call.prompt.end());
}
void fill(const LoadCall& call, v1::ChatRequest* request) {
  for (const auto& [role, content] : call.messages) {
    v1::Message* message = request->add_messages();
    message->set_role(role);
    message->set_content(content);
  }
}

// One call. Owns itself until gRPC is done with it.
template <typename Request, typename Response>
class LoadStream : public grpc::ClientReadReactor<Response> {
 public:
  LoadStream(const LoadCall& call, const ServerAddress& address, LoadClient::OnTokens on_tokens,
             LoadClient::OnDone on_done)
      : cancel_after_(call.cancel_after),
        keep_(call.keep_answer),
        on_tokens_(std::move(on_tokens)),
        on_done_(std::move(on_done)) {
    authorize(address, &context_);
    if (call.deadline_seconds > 0) {
      context_.set_deadline(
          std::chrono::system_clock::now() +
          std::chrono::microseconds(static_cast<int64_t>(call.deadline_seconds * 1e6)));
    }
    fill(call, &request_);
    v1::SamplingParams* sampling = request_.mutable_sampling();
    sampling->set_temperature(static_cast<float>(call.temperature));
    sampling->set_seed(call.seed);
    sampling->set_max_tokens(call.max_tokens);
    if (call.ignore_eos) sampling->set_ignore_eos(true);
  }

  template <typename Method>
  void begin(const Method& method) {
    answer_.sent = last_ = steady_clock::now();
    method(&context_, &request_, this);
    this->StartRead(&response_);
    if (cancel_after_ == 0) {
      answer_.cancelled = true;
      context_.TryCancel();
    }
    this->StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    const LoadTime now = steady_clock::now();
    if (const int32_t count = new_tokens(response_); count > 0) {
      if (answer_.ttft < 0) {
        answer_.ttft = seconds_between(answer_.sent, now);
      } else {
        answer_.itl.push_back(static_cast<float>(seconds_between(last_, now)));
      }
      last_ = now;
      answer_.output_tokens += count;
      on_tokens_(now, count);
      if (keep_) keep(response_, &answer_);
    }
    if (response_.has_usage()) {
      answer_.prompt_tokens = response_.usage().prompt_tokens();
      answer_.cached_tokens = response_.usage().cached_tokens();
      // What came in messages of several tokens, or without text.
      const int32_t uncounted = response_.usage().completion_tokens() - answer_.output_tokens;
      if (uncounted > 0) on_tokens_(now, uncounted);
      answer_.output_tokens = response_.usage().completion_tokens();
    } else if (cancel_after_ > 0 && answer_.output_tokens >= cancel_after_ && !answer_.cancelled) {
      answer_.cancelled = true;
      context_.TryCancel();
    }
    this->StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    answer_.ended = seconds_between(answer_.sent, steady_clock::now());
    answer_.latency = seconds_between(answer_.sent, last_);
    answer_.code = status.error_code();
    answer_.error = status.error_message();
    // A cancel that came too late, or met another end, is no cancel.
    if (status.error_code() != grpc::StatusCode::CANCELLED) answer_.cancelled = false;
    const LoadClient::OnDone on_done = std::move(on_done_);
    LoadAnswer answer = std::move(answer_);
    delete this;
    on_done(std::move(answer));
  }

 private:
  const int32_t cancel_after_;
  const bool keep_;
  const LoadClient::OnTokens on_tokens_;
  LoadClient::OnDone on_done_;
  grpc::ClientContext context_;
  Request request_;
  Response response_;
  LoadAnswer answer_;
  LoadTime last_{};
};

}  // namespace

struct LoadClient::Wire {
  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs;

  // One of the calls that only ask.
  template <typename Request, typename Response>
  grpc::Status ask(const ServerAddress& address,
                   grpc::Status (v1::Inference::Stub::*method)(grpc::ClientContext*, const Request&,
                                                               Response*),
                   const Request& request, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kShortCall);
    authorize(address, &context);
    return (stubs.front().get()->*method)(&context, request, response);
  }
};

LoadClient::LoadClient(const ServerAddress& address, bool chat, int connections)
    : address_(address), chat_(chat), wire_(std::make_unique<Wire>()) {
  for (int i = 0; i < connections; ++i) {
    wire_->stubs.push_back(v1::Inference::NewStub(open_channel(address)));
  }
}

LoadClient::~LoadClient() = default;

LoadServer LoadClient::connect(const std::function<void(const std::string&)>& on_wait) {
  const auto check = [&](const grpc::Status& status) {
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
        status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      throw_invalid("no server answers at {} ({}); start one with `shoal serve --model ...`",
                    address_.server, status.error_message());
    }
    if (!status.ok()) throw_invalid("{}: {}", address_.server, status.error_message());
  };
  while (true) {
    v1::GetStatusResponse status;
    check(wire_->ask(address_, &v1::Inference::Stub::GetStatus, v1::GetStatusRequest(), &status));
    if (status.state() == v1::SERVER_STATE_FAILED || status.state() == v1::SERVER_STATE_DRAINING) {
      throw_invalid("the server at {} is not serving: {}", address_.server, status.detail());
    }
    if (status.state() != v1::SERVER_STATE_LOADING) break;
    on_wait(status.detail().empty() ? "starting its ranks" : status.detail());
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  v1::GetModelResponse model;
  check(wire_->ask(address_, &v1::Inference::Stub::GetModel, v1::GetModelRequest(), &model));
  return {model.name(),
          model.context_length(),
          model.vocab_size(),
          {model.eos_token_ids().begin(), model.eos_token_ids().end()}};
}

std::vector<int32_t> LoadClient::tokenize(const std::string& text) {
  v1::TokenizeRequest request;
  request.set_text(text);
  v1::TokenizeResponse response;
  const grpc::Status status =
      wire_->ask(address_, &v1::Inference::Stub::Tokenize, request, &response);
  if (!status.ok())
    throw_invalid("{} does not tokenize: {}", address_.server, status.error_message());
  return {response.ids().begin(), response.ids().end()};
}

std::string LoadClient::detokenize(const std::vector<int32_t>& ids) {
  v1::DetokenizeRequest request;
  request.mutable_ids()->Add(ids.begin(), ids.end());
  request.set_skip_special_tokens(true);
  v1::DetokenizeResponse response;
  const grpc::Status status =
      wire_->ask(address_, &v1::Inference::Stub::Detokenize, request, &response);
  if (!status.ok())
    throw_invalid("{} does not detokenize: {}", address_.server, status.error_message());
  return response.text();
}

void LoadClient::start(const LoadCall& call, OnTokens on_tokens, OnDone on_done) {
  v1::Inference::Stub* stub = wire_->stubs[next_++ % wire_->stubs.size()].get();
  if (chat_) {
    auto* stream = new LoadStream<v1::ChatRequest, v1::ChatResponse>(
        call, address_, std::move(on_tokens), std::move(on_done));
    stream->begin([stub](auto... args) { stub->async()->Chat(args...); });
  } else {
    auto* stream = new LoadStream<v1::CompleteRequest, v1::CompleteResponse>(
        call, address_, std::move(on_tokens), std::move(on_done));
    stream->begin([stub](auto... args) { stub->async()->Complete(args...); });
  }
}

std::string status_name(int code) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < std::size(kNames) ? kNames[index] : fmt::format("status {}", code);
}

}  // namespace shoal
