#include "server/security/reloader.h"

#include <atomic>
#include <chrono>

#include "server/grpc_server.h"

namespace shoal {
namespace {

constexpr std::chrono::seconds kInterval{1};

std::atomic<bool> asked{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void on_signal(int) { asked = true; }

}  // namespace

Reloader::Reloader(GrpcServer& server) {
  struct sigaction action {};
  action.sa_handler = &on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGHUP, &action, &old_);
  thread_ = std::thread([this, &server] { watch(server); });
}

Reloader::~Reloader() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  thread_.join();
  sigaction(SIGHUP, &old_, nullptr);
}

void Reloader::watch(GrpcServer& server) {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kInterval, [this] { return ending_; })) {
    if (asked.exchange(false)) {
      server.reload();
    } else {
      server.reload_if_changed();
    }
  }
}

}  // namespace shoal
