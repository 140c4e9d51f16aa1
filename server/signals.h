// Signals (SIGTERM, SIGINT) as something to wait for. The handler only writes to a pipe. One at a
// time in a process; the former handlers come back with the destructor.
#pragma once

#include <signal.h>

#include <chrono>
#include <vector>

namespace shoal {

class StopSignals {
 public:
  explicit StopSignals(std::vector<int> signals);
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  // Sleeps until a signal comes, wake() is called or the time has passed; returns how many signals
  // have come since construction.
  int wait(std::chrono::milliseconds timeout);
  int count() const;
  void wake();  // any thread

 private:
  const std::vector<int> signals_;
  std::vector<struct sigaction> old_;  // of each
};

}  // namespace shoal
