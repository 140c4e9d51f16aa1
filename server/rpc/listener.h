// Listener: the sockets that a server listens on, and the thread that takes connections from them.
//
// gRPC's own listener (1.51) stops for good when accept() fails once, as it does when the process has no file
// descriptor left: a client that only opens connections would end the service. This one goes on, and keeps
// some descriptors back for everything else.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace shoal {

class Listener {
 public:
  // Binds every address that `host` stands for; port 0: any free one. Throws InvalidInput when it cannot.
  // Lets this process have as many descriptors as the system allows.
  Listener(const std::string& host, int port);
  ~Listener();  // stop
  Listener(const Listener&) = delete;

  int port() const { return port_; }
  // `take` gets every connection, which is its own from then on, on a thread of this object. Once.
  void start(std::function<void(int fd)> take);
  // No connection is taken any more; who connects is refused.
  void stop();

 private:
  void run(const std::function<void(int fd)>& take);
  void log_now_and_then(const char* what);
  bool take_one(int listening, const std::function<void(int fd)>& take);

  std::vector<int> sockets_;
  int port_ = 0;
  int wake_ = -1;  // eventfd: ends the thread
  std::chrono::steady_clock::time_point last_log_{};  // of the thread
  std::thread thread_;
};

}  // namespace shoal
