#include "tests/faults/client.h"

#include <grpcpp/alarm.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <random>
#include <stdexcept>

#include "shoal/v1/inference.grpc.pb.h"

namespace shoal {
namespace {

using Clock = std::chrono::steady_clock;

std::chrono::system_clock::time_point deadline_in(double seconds) {
  return std::chrono::system_clock::now() + std::chrono::microseconds(static_cast<int64_t>(1e6 * seconds));
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void prepare(grpc::ClientContext* context, const ClientOptions& client, const CallOptions& options) {
  context->set_deadline(deadline_in(options.deadline_seconds));
  if (!client.token.empty()) context->AddMetadata("authorization", "Bearer " + client.token);
  for (const auto& [name, value] : options.metadata) context->AddMetadata(name, value);
  if (options.compress) context->set_compression_algorithm(GRPC_COMPRESS_GZIP);
}

void set_status(CallResult* result, const grpc::Status& status, const grpc::ClientContext& context) {
  result->code = static_cast<Code>(status.error_code());
  result->message = status.error_message();
  for (const auto& [name, value] : context.GetServerTrailingMetadata()) {
    result->trailers.emplace(std::string(name.data(), name.size()), std::string(value.data(), value.size()));
  }
}

template <typename Response, typename Text>
void add(CallResult* result, const Response& response, const Text& text_of) {
  ++result->messages;
  for (const auto& output : response.outputs()) {
    if (output.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
      result->finish_reasons.push_back(output.finish_reason());
    }
    if (output.index() == 0) text_of(output);
  }
  if (response.has_usage()) {
    result->usage = response.usage();
    result->has_usage = true;
  }
}

void add(CallResult* result, const v1::CompleteResponse& response) {
  add(result, response, [&](const v1::CompleteOutput& output) {
    result->text += output.text();
    result->token_ids.insert(result->token_ids.end(), output.token_ids().begin(), output.token_ids().end());
  });
}

void add(CallResult* result, const v1::ChatResponse& response) {
  add(result, response, [&](const v1::ChatOutput& output) {
    result->text += output.reasoning_content() + output.content();
  });
}

}  // namespace

struct FaultClient::Impl {
  ClientOptions options;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Inference::Stub> stub;
};

FaultClient::FaultClient(const std::string& address, ClientOptions options)
    : impl_(std::make_unique<Impl>()) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, -1);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  if (options.window_bytes > 0) {
    args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, options.window_bytes);
    args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  }
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (!options.tls.ca.empty()) {
    grpc::SslCredentialsOptions ssl;
    ssl.pem_root_certs = options.tls.ca;
    ssl.pem_cert_chain = options.tls.certificate;
    ssl.pem_private_key = options.tls.key;
    credentials = grpc::SslCredentials(ssl);
    if (!options.tls.server_name.empty()) args.SetSslTargetNameOverride(options.tls.server_name);
  }
  impl_->options = std::move(options);
  impl_->channel = grpc::CreateCustomChannel(address, credentials, args);
  impl_->stub = v1::Inference::NewStub(impl_->channel);
}

FaultClient::~FaultClient() = default;

CallResult FaultClient::chat(const v1::ChatRequest& request, const CallOptions& options) {
  grpc::ClientContext context;
  prepare(&context, impl_->options, options);
  CallResult result;
  const auto begin = Clock::now();
  const auto reader = impl_->stub->Chat(&context, request);
  for (v1::ChatResponse response; reader->Read(&response);) add(&result, response);
  set_status(&result, reader->Finish(), context);
  result.seconds = seconds_since(begin);
  return result;
}

CallResult FaultClient::complete(const v1::CompleteRequest& request, const CallOptions& options) {
  return open(request, options)->finish();
}

CallResult FaultClient::detokenize(const v1::DetokenizeRequest& request, std::string* text) {
  grpc::ClientContext context;
  prepare(&context, impl_->options, {});
  v1::DetokenizeResponse response;
  CallResult result;
  set_status(&result, impl_->stub->Detokenize(&context, request, &response), context);
  if (text != nullptr) *text = response.text();
  return result;
}

CallResult FaultClient::tokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
  grpc::ClientContext context;
  prepare(&context, impl_->options, {});
  CallResult result;
  set_status(&result, impl_->stub->Tokenize(&context, request, response), context);
  return result;
}

v1::GetStatusResponse FaultClient::status() {
  grpc::ClientContext context;
  prepare(&context, impl_->options, {});
  v1::GetStatusResponse response;
  const grpc::Status status = impl_->stub->GetStatus(&context, {}, &response);
  if (!status.ok()) throw std::runtime_error("GetStatus: " + status.error_message());
  return response;
}

int FaultClient::health(const std::string& service) {
  // HealthCheckRequest{service = 1: string}, HealthCheckResponse{status = 1: enum}.
  std::string request, reply;
  if (!service.empty()) request = "\x0a" + std::string(1, static_cast<char>(service.size())) + service;
  const CallResult result = raw("/grpc.health.v1.Health/Check", request, &reply, {.deadline_seconds = 10});
  return result.code == Code::kOk && reply.size() == 2 ? reply[1] : 0;
}

CallResult FaultClient::raw(const std::string& method, const std::string& request, std::string* reply,
                            const CallOptions& options) {
  grpc::GenericStub stub(impl_->channel);
  grpc::ClientContext context;
  prepare(&context, impl_->options, options);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareCall(&context, method, &queue);
  void* tag;
  bool ok;
  CallResult result;
  const auto begin = Clock::now();
  call->StartCall(nullptr);
  queue.Next(&tag, &ok);
  if (ok) {
    const grpc::Slice slice(request);
    call->WriteLast(grpc::ByteBuffer(&slice, 1), {}, nullptr);
    queue.Next(&tag, &ok);
  }
  while (ok) {
    grpc::ByteBuffer buffer;
    call->Read(&buffer, nullptr);
    queue.Next(&tag, &ok);
    std::vector<grpc::Slice> slices;
    if (!ok || !buffer.Dump(&slices).ok()) break;
    ++result.messages;
    if (reply == nullptr || result.messages > 1) continue;
    reply->clear();
    for (const grpc::Slice& part : slices) {
      reply->append(reinterpret_cast<const char*>(part.begin()), part.size());
    }
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  set_status(&result, status, context);
  result.seconds = seconds_since(begin);
  return result;
}

struct FaultClient::Stream::Impl {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::CompleteResponse>> reader;
  CallResult result;
  Clock::time_point begin = Clock::now();
  bool finished = false;
};

FaultClient::Stream::Stream() : impl_(std::make_unique<Impl>()) {}

FaultClient::Stream::~Stream() {
  if (impl_->finished) return;
  cancel();
  finish();
}

bool FaultClient::Stream::read(v1::CompleteResponse* response) {
  if (!impl_->reader->Read(response)) return false;
  add(&impl_->result, *response);
  return true;
}

void FaultClient::Stream::cancel() { impl_->context.TryCancel(); }

CallResult FaultClient::Stream::finish() {
  for (v1::CompleteResponse response; read(&response);) {
  }
  set_status(&impl_->result, impl_->reader->Finish(), impl_->context);
  impl_->result.seconds = seconds_since(impl_->begin);
  impl_->finished = true;
  return impl_->result;
}

std::unique_ptr<FaultClient::Stream> FaultClient::open(const v1::CompleteRequest& request,
                                                       const CallOptions& options) {
  auto stream = std::make_unique<Stream>();
  prepare(&stream->impl_->context, impl_->options, options);
  stream->impl_->reader = impl_->stub->Complete(&stream->impl_->context, request);
  return stream;
}

void FaultClient::load(int total, int concurrent, const std::function<LoadCall(int)>& make,
                       const std::function<void(int, const LoadCall&, const CallResult&)>& done) {
  // What an operation of a call was: its address plus one of these is the tag.
  enum Kind : uintptr_t { kRead = 0, kFinish = 1, kPause = 2, kCancel = 3 };
  struct Pending {
    int number = 0;
    LoadCall call;
    grpc::ClientContext context;
    v1::CompleteResponse response;
    grpc::Status status;
    CallResult result;
    std::unique_ptr<grpc::ClientAsyncReader<v1::CompleteResponse>> reader;
    grpc::Alarm pause, cancel;
    Clock::time_point begin = Clock::now();
    bool started = false, cancel_pending = false, finished = false;
  };
  static_assert(alignof(Pending) >= 4);
  grpc::CompletionQueue queue;
  const auto tag = [](Pending* p, Kind kind) {
    return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(p) | kind);
  };
  int begun = 0, ended = 0;
  const auto begin_one = [&] {
    auto* p = new Pending;  // deleted below, after its last event
    p->number = begun++;
    p->call = make(p->number);
    prepare(&p->context, impl_->options, {.deadline_seconds = p->call.deadline_seconds});
    p->reader = impl_->stub->AsyncComplete(&p->context, p->call.request, &queue, tag(p, kRead));
    if (p->call.cancel_after_messages == 0) p->context.TryCancel();
    if (p->call.cancel_after_seconds >= 0) {
      p->cancel_pending = true;
      p->cancel.Set(&queue, deadline_in(p->call.cancel_after_seconds), tag(p, kCancel));
    }
  };
  const auto read_next = [&](Pending* p) {
    if (p->call.read_pause_ms > 0) {
      p->pause.Set(&queue, deadline_in(p->call.read_pause_ms / 1e3), tag(p, kPause));
    } else {
      p->reader->Read(&p->response, tag(p, kRead));
    }
  };
  while (begun < std::min(total, concurrent)) begin_one();
  void* event;
  bool ok;
  while (ended < total && queue.Next(&event, &ok)) {
    const auto bits = reinterpret_cast<uintptr_t>(event);
    auto* p = reinterpret_cast<Pending*>(bits & ~uintptr_t{3});
    switch (static_cast<Kind>(bits & 3)) {
      case kCancel:
        p->cancel_pending = false;
        if (ok) p->context.TryCancel();
        break;
      case kPause:
        p->reader->Read(&p->response, tag(p, kRead));
        break;
      case kRead:
        if (!ok) {
          p->reader->Finish(&p->status, tag(p, kFinish));
          break;
        }
        if (std::exchange(p->started, true)) {
          add(&p->result, p->response);
          if (p->result.messages == p->call.cancel_after_messages) p->context.TryCancel();
        }
        read_next(p);
        break;
      case kFinish:
        p->finished = true;
        if (p->cancel_pending) p->cancel.Cancel();
        break;
    }
    if (!p->finished || p->cancel_pending) continue;
    set_status(&p->result, p->status, p->context);
    p->result.seconds = seconds_since(p->begin);
    done(p->number, p->call, p->result);
    delete p;
    ++ended;
    if (begun < total) begin_one();
  }
}

v1::CompleteRequest greedy(const std::vector<int32_t>& prompt, int max_tokens) {
  v1::CompleteRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

std::vector<int32_t> some_ids(int seed, int length) {
  constexpr int32_t kFirst = 300, kVocabulary = 1536;  // no special token, no byte
  std::minstd_rand random(static_cast<unsigned>(seed) * 7919 + 1);
  std::vector<int32_t> ids(length);
  for (int32_t& id : ids) id = kFirst + static_cast<int32_t>(random() % (kVocabulary - kFirst));
  return ids;
}

}  // namespace shoal
