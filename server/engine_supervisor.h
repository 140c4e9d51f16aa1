// EngineSupervisor: the EngineClient of `shoal serve`. Starts the ranks, talks engine.proto with rank 0
// over a unix socket, and keeps a journal: every unfinished request with the tokens that it has emitted.
// When the ranks die, it starts them again and submits the journal anew, so clients see a pause.
// When they die too often, or because of a wrong flag or file, it fails for good: every request,
// also later ones, then ends with a kError event that says why.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "server/engine_client.h"
#include "server/engine_options.h"

namespace shoal {

struct SupervisorOptions {
  EngineOptions engine;
  // argv of one rank up to the socket's path, which is appended; empty: `shoal rank` with the flags.
  std::vector<std::string> command;
  // More restarts than that within the window are given up.
  int max_restarts = 3;
  std::chrono::seconds restart_window{300};
  // What the ranks get to end by themselves, and then after SIGTERM.
  std::chrono::milliseconds stop_grace{5000};
  // Ranks that have work and say nothing for so long hang: they are killed, as if they had died. A rank
  // says something after every step or, when steps are short, once a second.
  std::chrono::milliseconds step_timeout{120'000};
};

class EngineSupervisor : public EngineClient {
 public:
  // Returns at once; status() and on_state tell how the start goes on. Throws DeviceFault when no
  // directory for the socket can be made.
  explicit EngineSupervisor(SupervisorOptions options);
  // stop(), and no callback after it.
  ~EngineSupervisor() override;

  void submit(Request request, std::function<void(const TokenEvent&)> on_event) override;
  void cancel(RequestId id) override;
  EngineStatus status() const override;
  void set_on_state(std::function<void(const EngineStatus&)> on_state) override;

  // Ends the ranks; unfinished requests end with kAbort. Returns when they are gone, a little more than
  // `stop_grace` at the latest. Thread-safe, as are its parts below.
  void stop();
  // Asks ranks that serve to end; ranks that load, which hear nothing, are killed. Returns at once.
  void begin_stop();
  // Leaves the ranks no time to end by themselves: they are gone within a second. Returns at once.
  void kill();
  // False: still there after `timeout`.
  bool wait_stopped(std::chrono::milliseconds timeout);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
