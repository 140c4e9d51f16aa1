#include "server/rpc/health_service.h"

#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "grpc/health/v1/health.pb.h"
#include "server/rpc/reactors.h"

namespace shoal {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using State = HealthCheckResponse::ServingStatus;

constexpr const char* kUnreadable = "the request is not a HealthCheckRequest";

grpc::ByteBuffer response(State state) {
  HealthCheckResponse message;
  message.set_status(state);
  return to_bytes(message);
}

}  // namespace

// The states, and who watches them. Lives as long as a watch does, which may end after the service.
class HealthService::Watchers {
 public:
  std::optional<State> state(const std::string& service) const {
    const std::lock_guard lock(mutex_);
    const auto it = states_.find(service);
    return it == states_.end() ? std::nullopt : std::optional(it->second);
  }
  bool ended() const {
    const std::lock_guard lock(mutex_);
    return ended_;
  }
  void set(const std::string& service, State state);
  void end();
  void add(const std::shared_ptr<Watch>& watch) {
    const std::lock_guard lock(mutex_);
    watches_.insert(watch);
  }
  void remove(const std::shared_ptr<Watch>& watch) {
    const std::lock_guard lock(mutex_);
    watches_.erase(watch);
  }

 private:
  void tell_all();

  mutable std::mutex mutex_;
  std::map<std::string, State> states_;        // guarded by mutex_, as what follows
  std::set<std::shared_ptr<Watch>> watches_;
  bool ended_ = false;
};

// One Watch: writes the state when it is another than the one written last. Held by itself until gRPC is
// done with it.
class HealthService::Watch final : public OneRequestReactor, public std::enable_shared_from_this<Watch> {
 public:
  explicit Watch(std::shared_ptr<Watchers> watchers) : watchers_(std::move(watchers)) {}
  void begin() {
    self_ = shared_from_this();
    read_request();
  }

  void update() {
    std::unique_lock lock(mutex_);
    if (!known_ || finished_ || writing_) return;
    if (cancelled_ || watchers_->ended()) {
      finished_ = true;
      lock.unlock();
      Finish(cancelled_ ? grpc::Status::CANCELLED
                        : grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is shutting down"));
      return;
    }
    const State now = watchers_->state(service_).value_or(HealthCheckResponse::SERVICE_UNKNOWN);
    if (now == told_) return;
    told_ = now;
    writing_ = true;
    buffer_ = response(now);
    lock.unlock();
    StartWrite(&buffer_);
  }

  void OnWriteDone(bool ok) override {
    {
      const std::lock_guard lock(mutex_);
      writing_ = false;
      if (!ok) cancelled_ = true;
    }
    update();
  }
  void OnCancel() override {
    {
      const std::lock_guard lock(mutex_);
      cancelled_ = true;
    }
    update();
  }
  void OnDone() override {
    const auto self = std::move(self_);
    watchers_->remove(self);
  }

 private:
  void on_request(grpc::ByteBuffer& bytes) override {
    HealthCheckRequest request;
    if (!request.ParseFromString(flatten(bytes))) {
      return Finish({grpc::StatusCode::INVALID_ARGUMENT, kUnreadable});
    }
    watchers_->add(self_);
    {
      const std::lock_guard lock(mutex_);
      service_ = request.service();
      known_ = true;
    }
    update();
  }

  const std::shared_ptr<Watchers> watchers_;
  std::shared_ptr<Watch> self_;
  std::mutex mutex_;
  std::string service_;                     // guarded by mutex_, as what follows
  bool known_ = false;                      // the request is there
  bool writing_ = false, finished_ = false, cancelled_ = false;
  std::optional<State> told_;
  grpc::ByteBuffer buffer_;  // gRPC's while writing_
};

void HealthService::Watchers::tell_all() {
  std::vector<std::shared_ptr<Watch>> watches;
  {
    const std::lock_guard lock(mutex_);
    watches.assign(watches_.begin(), watches_.end());
  }
  for (const std::shared_ptr<Watch>& watch : watches) watch->update();
}

void HealthService::Watchers::set(const std::string& service, State state) {
  {
    const std::lock_guard lock(mutex_);
    states_[service] = state;
  }
  tell_all();
}

void HealthService::Watchers::end() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  tell_all();
}

HealthService::HealthService() : watchers_(std::make_shared<Watchers>()) {}
HealthService::~HealthService() = default;

std::map<std::string, RpcMethod> HealthService::methods() {
  return {{"Check",
           [watchers = watchers_](grpc::GenericCallbackServerContext*, const CallContext&) {
             return new UnaryReactor([watchers](const grpc::ByteBuffer& bytes, grpc::ByteBuffer* reply) {
               HealthCheckRequest request;
               if (!request.ParseFromString(flatten(bytes))) {
                 return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, kUnreadable);
               }
               const std::optional<State> state = watchers->state(request.service());
               if (!state) return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such service here");
               *reply = response(*state);
               return grpc::Status::OK;
             });
           }},
          {"Watch", [watchers = watchers_](grpc::GenericCallbackServerContext*, const CallContext&) {
             const auto watch = std::make_shared<Watch>(watchers);
             watch->begin();
             return watch.get();  // keeps itself
           }}};
}

void HealthService::set(const std::string& service, bool serving) {
  watchers_->set(service, serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING);
}

void HealthService::end() { watchers_->end(); }

}  // namespace shoal
