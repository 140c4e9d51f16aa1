#include "server/inference_service.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <mutex>
#include <utility>

#include "kernels/base/error.h"
#include "server/admission/error_details.h"
#include "server/call.h"
#include "server/logging/log_format.h"
#include "server/rpc/reactors.h"
#include "server/wire.h"

namespace shoal {
namespace {

// A client that ends its call at its deadline is early by our clock: on the wire the time left is rounded up
// by at most 1 %, and counted from when it arrives.
std::chrono::system_clock::duration deadline_slack(std::chrono::system_clock::time_point deadline) {
  const auto now = std::chrono::system_clock::now();
  if (deadline <= now || deadline == std::chrono::system_clock::time_point::max()) return {};
  return (deadline - now) / 100 + std::chrono::milliseconds(20);
}

grpc::Status to_grpc(const CallStatus& status) {
  return {static_cast<grpc::StatusCode>(status.code), status.message, error_details(status)};
}

// Runs `work`, and turns what it throws into the status of the call.
template <typename Work>
CallStatus guarded(Work&& work) {
  try {
    work();
    return {};
  } catch (const InvalidInput& error) {
    return {CallCode::kInvalidArgument, error.what()};
  } catch (const CallRefused& error) {
    return error.status();
  } catch (const std::exception& error) {
    spdlog::error("bug in the front end: {}", error.what());
    return {CallCode::kInternal, "internal error of the server"};
  }
}

template <typename Message>
Message parse(const grpc::ByteBuffer& bytes) {
  Message message;
  parse_message(flatten(bytes), &message);
  return message;
}

// One call's stream: reads the request, then takes updates of the call while gRPC has written the last
// one. Owns itself until gRPC is done with it.
template <typename Response>
class CallStream : public OneRequestReactor,
                   public std::enable_shared_from_this<CallStream<Response>> {
 public:
  using Make = std::function<std::shared_ptr<Call>(const grpc::ByteBuffer&, const CallContext&)>;
  CallStream(grpc::CallbackServerContext* context, FrontEnd& front_end, const char* method,
             CallContext caller, Make make)
      : context_(context),
        front_end_(front_end),
        deadline_slack_(deadline_slack(context->deadline())),
        method_(method),
        caller_(std::move(caller)),
        make_(std::move(make)) {}

  void begin() {
    self_ = this->shared_from_this();
    read_request();
  }

  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
    }
    if (!ok) end_cancelled();  // the client has gone, or its deadline passed
    pump();
  }

  void OnCancel() override {
    {
      std::lock_guard lock(mutex_);
      cancelled_ = true;
      if (!started_) return;
    }
    end_cancelled();
  }

  void OnDone() override {
    const auto self = std::move(self_);  // destroyed here, or by a pump() that still runs
  }

 private:
  void on_request(grpc::ByteBuffer& request) override {
    const LogFields of_caller(caller_.request_id);  // the call has no id of its own yet
    const CallStatus status = guarded([&] { call_ = make_(request, caller_); });
    request.Clear();
    if (status.code != CallCode::kOk) {
      front_end_.book().rejected(method_, caller_, status);
      if (status.retry_after) {
        context_->AddTrailingMetadata("grpc-retry-pushback-ms",
                                      std::to_string(status.retry_after->count()));
      }
      return Finish(to_grpc(status));
    }
    head_.set_id(call_->id());
    head_.set_model(front_end_.model_name());
    head_.set_created(std::chrono::duration_cast<std::chrono::seconds>(
                          std::chrono::system_clock::now().time_since_epoch())
                          .count());
    call_->start([weak = this->weak_from_this()] {
      if (const auto stream = weak.lock()) stream->pump();
    });
    bool cancelled;
    {
      std::lock_guard lock(mutex_);
      started_ = true;
      cancelled = cancelled_;
    }
    if (cancelled) end_cancelled();
  }

  void end_cancelled() {
    const bool late = std::chrono::system_clock::now() + deadline_slack_ >= context_->deadline();
    call_->end(late ? CallStatus{CallCode::kDeadlineExceeded, "the call's deadline passed"}
                    : CallStatus{CallCode::kCancelled, "the client cancelled the call"});
  }

  // Writes the next update, or finishes; called whenever one of both may have become possible.
  void pump() {
    std::unique_lock lock(mutex_);
    if (finished_) return;
    if (writing_) {
      // A client that does not read blocks its own last word: only a reset reaches it.
      if (call_->status().code != CallCode::kOk) context_->TryCancel();
      return;
    }
    CallUpdate update;
    Response response;
    while (true) {
      const Call::Next next = call_->take(&update);
      if (next == Call::Next::kNothing) return;
      if (next == Call::Next::kEnd) {
        finished_ = true;
        lock.unlock();
        Finish(to_grpc(call_->status()));
        return;
      }
      response = head_;
      if (fill_response(front_end_, update, &response)) break;
    }
    buffer_ = to_bytes(response);
    writing_ = true;
    lock.unlock();
    StartWrite(&buffer_);
  }

  grpc::CallbackServerContext* const context_;
  FrontEnd& front_end_;
  const std::chrono::system_clock::duration deadline_slack_;
  const char* const method_;
  const CallContext caller_;
  const Make make_;
  std::shared_ptr<Call> call_;  // set before it is started
  Response head_;
  std::shared_ptr<CallStream> self_;

  std::mutex mutex_;
  bool writing_ = false, finished_ = false;     // guarded by mutex_
  bool started_ = false, cancelled_ = false;    // likewise
  grpc::ByteBuffer buffer_;                  // gRPC's while writing_
};

class InferenceService final : public RpcService {
 public:
  explicit InferenceService(FrontEnd& front_end) : front_end_(front_end) {}

  std::string name() const override { return "shoal.v1.Inference"; }

  std::map<std::string, RpcMethod> methods() override {
    return {
        {kChat, stream<v1::ChatResponse>(kChat,
                                         [this](const grpc::ByteBuffer& bytes, const CallContext& caller) {
                                           return front_end_.chat(parse<v1::ChatRequest>(bytes), caller);
                                         })},
        {kComplete,
         stream<v1::CompleteResponse>(
             kComplete,
             [this](const grpc::ByteBuffer& bytes, const CallContext& caller) {
               return front_end_.complete(parse<v1::CompleteRequest>(bytes), caller);
             })},
        {"Tokenize", unary<v1::TokenizeRequest>(
                         [this](const auto& request) { return front_end_.tokenize(request); })},
        {"Detokenize", unary<v1::DetokenizeRequest>(
                           [this](const auto& request) { return front_end_.detokenize(request); })},
        {"GetModel",
         unary<v1::GetModelRequest>([this](const auto&) { return front_end_.model(); })},
        {"GetStatus",
         unary<v1::GetStatusRequest>([this](const auto&) { return front_end_.status(); })},
    };
  }

  void refused(const std::string& method, const CallContext& caller,
               const CallStatus& status) override {
    for (const char* counted : {kChat, kComplete}) {
      if (method == counted) front_end_.book().rejected(counted, caller, status);
    }
  }

 private:
  static constexpr const char* kChat = "Chat";
  static constexpr const char* kComplete = "Complete";

  template <typename Response>
  RpcMethod stream(const char* method, typename CallStream<Response>::Make make) {
    return [this, method, make](grpc::GenericCallbackServerContext* context, CallContext caller) {
      const auto stream = std::make_shared<CallStream<Response>>(context, front_end_, method,
                                                                 std::move(caller), make);
      stream->begin();
      return stream.get();  // keeps itself
    };
  }

  template <typename Request, typename Work>
  RpcMethod unary(Work work) {
    return [work](grpc::GenericCallbackServerContext*, const CallContext&) {
      return new UnaryReactor([work](const grpc::ByteBuffer& bytes, grpc::ByteBuffer* reply) {
        return to_grpc(guarded([&] { *reply = to_bytes(work(parse<Request>(bytes))); }));
      });
    };
  }

  FrontEnd& front_end_;
};

}  // namespace

std::unique_ptr<RpcService> make_inference_service(FrontEnd& front_end) {
  return std::make_unique<InferenceService>(front_end);
}

}  // namespace shoal
