#include "server/inference_service.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <mutex>
#include <utility>

#include "kernels/base/error.h"
#include "server/call.h"
#include "server/wire.h"
#include "shoal/v1/inference.grpc.pb.h"

namespace shoal {
namespace {

// How long a client should wait before it tries again when the queue is full.
constexpr const char* kPushbackMs = "1000";

grpc::Status to_grpc(const CallStatus& status) {
  return {static_cast<grpc::StatusCode>(status.code), status.message};
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
    return {error.code(), error.what()};
  } catch (const std::exception& error) {
    spdlog::error("bug in the front end: {}", error.what());
    return {CallCode::kInternal, "internal error of the server"};
  }
}

// Not one character's time tells how much of the key was right.
bool same_key(const std::string& given, const std::string& key) {
  unsigned difference = given.size() == key.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    difference |=
        static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(key[i % key.size()]);
  }
  return difference == 0;
}

void check_key(const grpc::CallbackServerContext& context, const std::string& key) {
  if (key.empty()) return;
  const auto range = context.client_metadata().equal_range("authorization");
  for (auto it = range.first; it != range.second; ++it) {
    const std::string value(it->second.data(), it->second.size());
    if (value.rfind("Bearer ", 0) == 0 && same_key(value.substr(7), key)) return;
  }
  throw CallRefused(CallCode::kUnauthenticated,
                    "this server wants an API key: send `authorization: Bearer KEY`");
}

CallContext call_context(const grpc::CallbackServerContext& context) {
  CallContext result;
  if (context.deadline() != std::chrono::system_clock::time_point::max()) {
    result.deadline = context.deadline();
  }
  return result;
}

template <typename Message>
Message parse(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  if (!bytes.Dump(&slices).ok()) throw_invalid("the request could not be read");
  std::string flat;
  flat.reserve(bytes.Length());
  for (const grpc::Slice& slice : slices) {
    flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  Message message;
  parse_message(flat, &message);
  return message;
}

grpc::ByteBuffer to_bytes(const google::protobuf::Message& message) {
  const std::string flat = message.SerializeAsString();
  const grpc::Slice slice(flat);
  return grpc::ByteBuffer(&slice, 1);
}

// A stream that only says why there is none.
class RefusedStream : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit RefusedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

// One call's stream: takes updates of the call while gRPC has written the last one. Owns itself
// until gRPC is done with it.
template <typename Response>
class CallStream : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                   public std::enable_shared_from_this<CallStream<Response>> {
 public:
  CallStream(grpc::CallbackServerContext* context, FrontEnd& front_end, std::shared_ptr<Call> call)
      : context_(context), front_end_(front_end), call_(std::move(call)) {
    head_.set_id(call_->id());
    head_.set_model(front_end_.model_name());
    head_.set_created(std::chrono::duration_cast<std::chrono::seconds>(
                          std::chrono::system_clock::now().time_since_epoch())
                          .count());
  }

  void begin() {
    self_ = this->shared_from_this();
    call_->start([weak = this->weak_from_this()] {
      if (const auto stream = weak.lock()) stream->pump();
    });
  }

  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
    }
    if (!ok) OnCancel();  // the client has gone, or its deadline passed
    pump();
  }

  void OnCancel() override {
    const bool late = std::chrono::system_clock::now() >= context_->deadline();
    call_->end(late ? CallStatus{CallCode::kDeadlineExceeded, "the call's deadline passed"}
                    : CallStatus{CallCode::kCancelled, "the client cancelled the call"});
  }

  void OnDone() override {
    const auto self = std::move(self_);  // destroyed here, or by a pump() that still runs
  }

 private:
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
  const std::shared_ptr<Call> call_;
  Response head_;
  std::shared_ptr<CallStream> self_;

  std::mutex mutex_;
  bool writing_ = false, finished_ = false;  // guarded by mutex_
  grpc::ByteBuffer buffer_;                  // gRPC's while writing_
};

using v1::Inference;
using RawChat = Inference::WithRawCallbackMethod_Chat<Inference::Service>;
using RawComplete = Inference::WithRawCallbackMethod_Complete<RawChat>;
using RawTokenize = Inference::WithRawCallbackMethod_Tokenize<RawComplete>;
using RawDetokenize = Inference::WithRawCallbackMethod_Detokenize<RawTokenize>;
using RawGetModel = Inference::WithRawCallbackMethod_GetModel<RawDetokenize>;
using RawInference = Inference::WithRawCallbackMethod_GetStatus<RawGetModel>;

class InferenceService final : public RawInference {
 public:
  InferenceService(FrontEnd& front_end, std::string api_key)
      : front_end_(front_end), api_key_(std::move(api_key)) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Chat(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* bytes) override {
    return open<v1::ChatResponse>(context,
                                  [&] { return front_end_.chat(parse<v1::ChatRequest>(*bytes), call_context(*context)); });
  }

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Complete(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* bytes) override {
    return open<v1::CompleteResponse>(
        context, [&] { return front_end_.complete(parse<v1::CompleteRequest>(*bytes), call_context(*context)); });
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* reply) override {
    return answer(context, reply,
                  [&] { return front_end_.tokenize(parse<v1::TokenizeRequest>(*bytes)); });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* bytes,
                                       grpc::ByteBuffer* reply) override {
    return answer(context, reply,
                  [&] { return front_end_.detokenize(parse<v1::DetokenizeRequest>(*bytes)); });
  }

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* reply) override {
    return answer(context, reply, [&] { return front_end_.model(); });
  }

  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* bytes,
                                      grpc::ByteBuffer* reply) override {
    return answer(context, reply, [&] { return front_end_.status(); });
  }

 private:
  template <typename Response, typename Make>
  grpc::ServerWriteReactor<grpc::ByteBuffer>* open(grpc::CallbackServerContext* context,
                                                   Make make) {
    std::shared_ptr<Call> call;
    const CallStatus status = guarded([&] {
      check_key(*context, api_key_);
      call = make();
    });
    if (status.code != CallCode::kOk) {
      front_end_.book().rejected();
      if (status.code == CallCode::kResourceExhausted) {
        context->AddTrailingMetadata("grpc-retry-pushback-ms", kPushbackMs);
      }
      return new RefusedStream(to_grpc(status));
    }
    const auto stream =
        std::make_shared<CallStream<Response>>(context, front_end_, std::move(call));
    stream->begin();
    return stream.get();  // keeps itself
  }

  template <typename Work>
  grpc::ServerUnaryReactor* answer(grpc::CallbackServerContext* context, grpc::ByteBuffer* reply,
                                   Work work) {
    const CallStatus status = guarded([&] {
      check_key(*context, api_key_);
      *reply = to_bytes(work());
    });
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(to_grpc(status));
    return reactor;
  }

  FrontEnd& front_end_;
  const std::string api_key_;
};

}  // namespace

std::unique_ptr<grpc::Service> make_inference_service(FrontEnd& front_end, std::string api_key) {
  return std::make_unique<InferenceService>(front_end, std::move(api_key));
}

}  // namespace shoal
