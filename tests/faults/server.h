// `shoal serve` of the demo model for tests of faults, and what it must be like when nothing is lost: a picture of
// the idle server before and after, and a neighbour's stream that a fault must not touch.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/e2e/server_process.h"
#include "tests/faults/client.h"

namespace shoal {

// Everything takes far less; the machine may be building beside, or the build may be a sanitizer's.
inline constexpr int kPatienceSeconds = 120;
bool eventually(const std::function<bool()>& condition, double seconds = kPatienceSeconds);

struct FaultServer {
  // Starts and waits until it is ready. Flags beside --model and --port.
  explicit FaultServer(const std::vector<std::string>& flags = {}, const std::string& model = demo_model());

  // The processes that run `shoal rank`, in order of their start.
  std::vector<pid_t> rank_pids() const;
  std::unique_ptr<FaultClient> connect(ClientOptions options = {}) const {
    return std::make_unique<FaultClient>(address, std::move(options));
  }

  ShoalProcess process;
  std::string address;
  int port = 0;
};

// Of one process, from /proc.
struct Vitals {
  int fds = 0, threads = 0;
  int64_t rss = 0;  // bytes
};
Vitals vitals(pid_t pid);

// A picture of a server that idles, and the check that it comes back to it: no stream, sequence or page is left, no
// file descriptor or thread more than `slack`, memory not more than `rss_slack` (not looked at under sanitizers).
class Idle {
 public:
  explicit Idle(const FaultServer& server, FaultClient& client);
  // Empty when the server is idle again, else what is left, after kPatienceSeconds.
  std::string difference(int64_t rss_slack = int64_t{64} << 20, int slack = 4);
  // Since the picture was taken.
  v1::GetStatusResponse status();
  struct Ends {
    uint64_t ok, cancelled, deadline, rejected, failed;
    uint64_t sum() const { return ok + cancelled + deadline + rejected + failed; }
  };
  Ends ends();

 private:
  std::string difference_now(int64_t rss_slack, int slack);
  const FaultServer& server_;
  FaultClient& client_;
  v1::GetStatusResponse before_;
  std::map<pid_t, Vitals> vitals_;
};

// A stream beside a fault. Its tokens are known from a run without one.
class Neighbour {
 public:
  Neighbour(const FaultServer& server, int max_tokens, double temperature = 0);
  ~Neighbour();
  // Begins to stream; when this returns the first token has come.
  void start();
  // Waits for the end. Empty when every token is as expected, else what is not.
  std::string difference();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Whether this program is built with a sanitizer, where memory is not what it is otherwise.
bool sanitized();

}  // namespace shoal
