// Reloader: looks once a second whether a server's keys or certificates have changed, and reads them again on
// SIGHUP. One at a time in a process.
#pragma once

#include <signal.h>

#include <condition_variable>
#include <mutex>
#include <thread>

namespace shoal {

class GrpcServer;

class Reloader {
 public:
  explicit Reloader(GrpcServer& server);  // which must outlive it
  ~Reloader();
  Reloader(const Reloader&) = delete;

 private:
  void watch(GrpcServer& server);

  struct sigaction old_ {};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace shoal
