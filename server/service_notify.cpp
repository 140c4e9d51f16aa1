#include "server/service_notify.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace shoal {
namespace {

constexpr std::chrono::seconds kShortest{1};  // between two of a kind

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

bool ProgressWatch::alive(const EngineStatus& status, Clock::time_point now) {
  const bool serves = status.state == EngineState::kReady;
  const bool loads = status.state == EngineState::kStarting || status.state == EngineState::kLoading ||
                     status.state == EngineState::kRestarting;
  const uint64_t seen = serves ? status.steps : status.bytes_read;
  const bool idle = serves ? status.unfinished == 0 : !loads;
  if (idle || seen != seen_ || status.state != state_ || status.restarts != restarts_) {
    seen_ = seen;
    state_ = status.state;
    restarts_ = status.restarts;
    since_ = now;
  }
  return now - since_ <= (serves ? step_silence_ : Clock::duration(kLoadSilence));
}

ServiceNotify::ServiceNotify() : address_(variable("NOTIFY_SOCKET")) {
  sockaddr_un address{};
  if (address_.empty() || address_.size() >= sizeof address.sun_path ||
      (address_[0] != '/' && address_[0] != '@')) {
    return;
  }
  socket_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const std::string pid = variable("WATCHDOG_PID");  // set: the one process that is asked
  watchdog_ = !variable("WATCHDOG_USEC").empty() && (pid.empty() || pid == std::to_string(getpid()));
}

ServiceNotify::~ServiceNotify() {
  if (socket_ >= 0) close(socket_);
}

void ServiceNotify::send(const std::string& message) {
  if (socket_ < 0) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, address_.data(), address_.size());
  if (address_[0] == '@') address.sun_path[0] = '\0';  // a name and no file
  // Nobody who listens is no reason to fail, and one who is slow none to wait.
  [[maybe_unused]] const ssize_t sent =
      sendto(socket_, message.data(), message.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
             reinterpret_cast<const sockaddr*>(&address),
             static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size()));
}

void ServiceNotify::ready() { send("READY=1"); }

void ServiceNotify::status(const std::string& text) {
  if (text == status_) return;
  status_ = text;
  std::string line = text;  // one line: what follows would be another assignment
  std::replace(line.begin(), line.end(), '\n', ' ');
  send("STATUS=" + line);
}

void ServiceNotify::stopping() { send("STOPPING=1"); }

void ServiceNotify::extend(std::chrono::microseconds time) {
  if (Clock::now() - last_extend_ < kShortest) return;
  last_extend_ = Clock::now();
  send(fmt::format("EXTEND_TIMEOUT_USEC={}", time.count()));
}

void ServiceNotify::alive() {
  if (!watchdog_ || Clock::now() - last_alive_ < kShortest) return;
  last_alive_ = Clock::now();
  send("WATCHDOG=1");
}

}  // namespace shoal
