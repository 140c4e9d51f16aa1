// What systemd is told of the service (sd_notify(3), whose protocol is one datagram): ready, how it goes, that
// it lives, that a long start or end is no hang. Without NOTIFY_SOCKET nothing is said. Not thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "server/engine_client.h"

namespace shoal {

// Whether the engine gets on. One that has work and takes no step, or a load that stands still, does not.
class ProgressWatch {
 public:
  using Clock = std::chrono::steady_clock;
  // What a load may take without reading a byte: sorting experts, recording graphs, a slow file system.
  static constexpr std::chrono::minutes kLoadSilence{10};

  // `step_silence`: longer than the supervisor's step_timeout, which is the first to act.
  explicit ProgressWatch(Clock::duration step_silence) : step_silence_(step_silence) {}
  // False from when the engine has stood still for too long until it moves again.
  bool alive(const EngineStatus& status, Clock::time_point now = Clock::now());

 private:
  const Clock::duration step_silence_;
  EngineState state_ = EngineState::kStopped;
  uint64_t seen_ = 0;  // steps taken, or bytes read
  int restarts_ = 0;
  Clock::time_point since_{};
};

class ServiceNotify {
 public:
  ServiceNotify();  // from the environment
  ~ServiceNotify();
  ServiceNotify(const ServiceNotify&) = delete;

  bool active() const { return socket_ >= 0; }
  void ready();
  void status(const std::string& text);  // only when it has changed
  void stopping();
  // Of the start or the end: it may take so long from now on.
  void extend(std::chrono::microseconds time);
  // Tells the watchdog that the service lives; when it is not told for WatchdogSec, systemd restarts it.
  void alive();

 private:
  using Clock = std::chrono::steady_clock;
  void send(const std::string& message);

  int socket_ = -1;
  bool watchdog_ = false;
  std::string address_, status_;
  Clock::time_point last_alive_{}, last_extend_{};
};

}  // namespace shoal
