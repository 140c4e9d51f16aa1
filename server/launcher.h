// Launcher: the rank processes as children: what rank_world.h says, which is mpirun for more than one rank.
//
// Nobody is left behind: the child is in its own process group, dies when the thread that made it ends
// (PR_SET_PDEATHSIG), and ranks ask the same of mpirun (run_rank). So construct and keep RankProcesses
// on a thread that lives as long as they do.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "server/engine_options.h"
#include "server/rank_world.h"

namespace shoal {

// argv of one rank: this executable, `rank`, and every engine flag.
std::vector<std::string> rank_command(const EngineOptions& options, const std::string& socket_path);

struct ProcessExit {
  int code = 0;    // valid unless killed by a signal
  int signal = 0;  // 0: not by a signal
};
std::string describe(const ProcessExit& exit);  // "exit code 3", "signal 9 (Killed)"

class RankProcesses {
 public:
  // Both are called on a thread of this object. A line of stderr, and of stdout unless that is
  // inherited, without its end.
  struct Observer {
    std::function<void(const std::string& line)> on_line;
    std::function<void(const ProcessExit&)> on_exit = {};  // last; every line has been given
    bool inherit_stdout = false;
  };
  // Throws DeviceFault when there are no processes or pipes to be had. A command that cannot be run
  // gives an error line and exit code 2.
  RankProcesses(RankWorld world, Observer observer);
  ~RankProcesses();  // terminate(0)
  RankProcesses(const RankProcesses&) = delete;

  pid_t pid() const { return pid_; }
  // All thread-safe. wait: false when they still run after `timeout`.
  bool wait(std::chrono::milliseconds timeout);
  void signal_group(int signal);
  // SIGTERM to the whole group, SIGKILL after `grace`. Returns when they are gone.
  void terminate(std::chrono::milliseconds grace);

 private:
  void watch();

  Observer observer_;
  pid_t pid_ = -1;
  int output_ = -1;  // read end of the pipe
  int pidfd_ = -1;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reaped_ = false;  // guarded by mutex_; the pid may be another's from then on
  bool done_ = false;    // guarded by mutex_: on_exit has returned
  std::thread watcher_;
};

// Whether this process is a rank that mpirun started.
bool started_by_mpirun();
// Runs this process's own command line once more, as `ranks` processes with the same stdout; an error
// line that several ranks agree on is passed on once. Returns their exit code.
int run_self_under_mpirun(int ranks);

}  // namespace shoal
