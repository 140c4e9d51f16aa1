#include "server/engine_service.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "kernels/base/error.h"
#include "server/engine_wire.h"
#include "shoal/engine/v1/engine.grpc.pb.h"

namespace shoal {
namespace pb = engine::v1;
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kProgressInterval{100};
constexpr std::chrono::seconds kStatsInterval{1};
constexpr std::chrono::seconds kLongestFlush{1};

}  // namespace

class EngineService::Impl final : public pb::Engine::Service {
 public:
  explicit Impl(const std::string& socket_path) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket_path, grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    builder.SetMaxReceiveMessageSize(-1);  // a prompt is as long as the context; the peer is our own
    builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    server_ = builder.BuildAndStart();
    if (!server_) throw DeviceFault(fmt::format("cannot listen on unix socket {}", socket_path));
  }

  ~Impl() override {
    flush();
    {
      const std::lock_guard lock(mutex_);
      engine_ = nullptr;
      finished_ = true;
      changed_.notify_all();
    }
    server_->Shutdown(std::chrono::system_clock::now() + kLongestFlush);
  }

  grpc::Status Run(grpc::ServerContext* context,
                   grpc::ServerReaderWriter<pb::FromEngine, pb::ToEngine>* stream) override {
    {
      const std::lock_guard lock(mutex_);
      if (open_ || finished_) {
        return {grpc::StatusCode::FAILED_PRECONDITION, "the engine has one conversation only"};
      }
      open_ = true;
    }
    // Apart from the messages: gRPC 1.51 never ends a first Write that has a buffer hint, because the
    // metadata that goes with it is not flushed.
    stream->SendInitialMetadata();
    std::thread writer([&] { write_all(context, *stream); });
    pb::ToEngine message;
    while (stream->Read(&message)) handle(message);
    {
      // The front end has said all, or is gone: nobody is left to compute for.
      std::unique_lock lock(mutex_);
      if (engine_ != nullptr) engine_->stop();
      stop_asked_ = true;
      if (context->IsCancelled()) broken_ = true;
      changed_.notify_all();
      changed_.wait(lock, [&] { return finished_ || broken_; });
    }
    writer.join();
    return grpc::Status::OK;
  }

  void send(pb::FromEngine message) {
    const std::lock_guard lock(mutex_);
    if (broken_) return;
    outgoing_.push_back(std::move(message));
    changed_.notify_all();
  }

  void serve(Engine& engine, pb::FromEngine ready) {
    const std::lock_guard lock(mutex_);
    engine_ = &engine;
    if (stop_asked_) engine.stop();
    outgoing_.push_back(std::move(ready));
    changed_.notify_all();
  }

  void release() {
    const std::lock_guard lock(mutex_);
    engine_ = nullptr;
  }

  // Also waits for a front end that is about to connect, when there is something to say.
  void flush() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kLongestFlush,
                      [&] { return broken_ || (outgoing_.empty() && !writing_); });
  }

  Clock::time_point last_progress;  // of the loading thread
  Clock::time_point last_stats;     // of the engine's thread, as is the next
  bool idle = true;

 private:
  void handle(const pb::ToEngine& message) {
    const std::lock_guard lock(mutex_);
    if (engine_ == nullptr) return;  // ended, or not ready: nothing is submitted before Ready
    switch (message.message_case()) {
      case pb::ToEngine::kSubmit:
        engine_->submit(from_message(message.submit()));
        break;
      case pb::ToEngine::kCancel:
        engine_->cancel(message.cancel().id());
        break;
      case pb::ToEngine::kShutdown:
        engine_->stop();
        break;
      case pb::ToEngine::MESSAGE_NOT_SET:
        break;
    }
  }

  void write_all(grpc::ServerContext* context,
                 grpc::ServerReaderWriter<pb::FromEngine, pb::ToEngine>& stream) {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return !outgoing_.empty() || finished_ || broken_; });
      if (broken_ || outgoing_.empty()) break;
      std::deque<pb::FromEngine> batch = std::exchange(outgoing_, {});
      writing_ = true;
      lock.unlock();
      bool ok = true;
      for (size_t i = 0; ok && i < batch.size(); ++i) ok = stream.Write(batch[i]);
      lock.lock();
      writing_ = false;
      if (!ok) broken_ = true;
      changed_.notify_all();
    }
    // Ends a reader that still waits for the front end.
    if (!stop_asked_) context->TryCancel();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  // All guarded by mutex_.
  std::deque<pb::FromEngine> outgoing_;
  Engine* engine_ = nullptr;
  bool open_ = false;        // the one conversation has begun
  bool writing_ = false;     // messages are out of outgoing_ and not written yet
  bool stop_asked_ = false;  // the front end will say no more
  bool broken_ = false;      // the stream takes no more
  bool finished_ = false;    // there will be no more to send

  std::unique_ptr<grpc::Server> server_;
};

EngineService::EngineService(const std::string& socket_path)
    : impl_(std::make_unique<Impl>(socket_path)) {}
EngineService::~EngineService() = default;

void EngineService::loading(uint64_t bytes_read, uint64_t bytes_total) {
  const auto now = Clock::now();
  if (bytes_read < bytes_total && now - impl_->last_progress < kProgressInterval) return;
  impl_->last_progress = now;
  pb::FromEngine message;
  message.mutable_loading()->set_bytes_read(bytes_read);
  message.mutable_loading()->set_bytes_total(bytes_total);
  impl_->send(std::move(message));
}

void EngineService::emit(std::vector<TokenEvent> events, const EngineStats& stats) {
  // Also when work begins and ends, so that the numbers of an idle engine are right; before the events, so that
  // whoever has got the last token finds it in them.
  const bool idle = stats.scheduler.running + stats.scheduler.waiting == 0;
  const auto now = Clock::now();
  if (idle != impl_->idle || now - impl_->last_stats >= kStatsInterval) {
    impl_->idle = idle;
    impl_->last_stats = now;
    pb::FromEngine message;
    *message.mutable_stats() = to_message(stats);
    impl_->send(std::move(message));
  }
  if (events.empty()) return;
  pb::FromEngine message;
  for (const TokenEvent& event : events) {
    to_message(event, message.mutable_tokens()->add_events());
  }
  impl_->send(std::move(message));
}

void EngineService::serve(Engine& engine, const EngineReady& ready) {
  pb::FromEngine message;
  pb::Ready& m = *message.mutable_ready();
  m.set_world_size(ready.world_size);
  m.set_max_model_len(ready.max_model_len);
  m.set_kv_tokens(ready.kv_tokens);
  m.set_weight_bytes(ready.weight_bytes);
  m.set_kv_cache_bytes(ready.kv_cache_bytes);
  m.set_load_seconds(ready.load_seconds);
  for (const std::string& rank : ready.ranks) m.add_ranks(rank);
  for (const std::vector<EngineReady::Memory>& rank : ready.memory) {
    pb::RankMemory& uses = *m.add_memory();
    for (const EngineReady::Memory& memory : rank) {
      pb::MemoryUse& use = *uses.add_uses();
      use.set_name(memory.use);
      use.set_planned(memory.planned);
      use.set_taken(memory.taken);
    }
  }
  impl_->serve(engine, std::move(message));
}

void EngineService::release() { impl_->release(); }

void EngineService::failed(const std::string& reason, bool invalid_input) {
  pb::FromEngine message;
  message.mutable_failure()->set_reason(reason);
  message.mutable_failure()->set_invalid_input(invalid_input);
  impl_->send(std::move(message));
  impl_->flush();
}

}  // namespace shoal
