// `shoal` as its users run it: a child process whose standard error is read.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace shoal {

class ShoalProcess {
 public:
  // Starts `shoal` with these arguments; with `before`, words that run it, as in a namespace.
  explicit ShoalProcess(const std::vector<std::string>& args, const std::vector<std::string>& before = {});
  ~ShoalProcess();  // SIGKILL if it still runs
  ShoalProcess(const ShoalProcess&) = delete;

  pid_t pid() const { return pid_; }
  // Waits for a line of standard error that contains `text` and returns it; empty when the process
  // ended or `seconds` passed first.
  std::string wait_line(const std::string& text, int seconds);
  void send(int signal);
  // Waits for the end and gives the exit code, -1 when killed by a signal or still running after
  // `seconds`.
  int wait_exit(int seconds);
  std::string output();  // of standard error so far

 private:
  void read_lines();

  pid_t pid_ = -1;
  int pipe_ = -1;
  std::thread reader_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> lines_;  // guarded by mutex_
  bool ended_ = false;              // guarded by mutex_: standard error is closed
  bool reaped_ = false;
  int code_ = -1;
};

// Children of a process, their children, and so on.
std::vector<pid_t> descendants(pid_t pid);

// Processor seconds that a process and all its descendants have used.
double cpu_seconds(pid_t pid);

// A `shoal serve` of the demo model on two ranks that is ready; one for all tests of a program.
struct DemoServer {
  static DemoServer& instance();
  ShoalProcess process;
  std::string address;

 private:
  DemoServer();
};

// SHOAL_DEMO_MODEL names another folder: the demo model quantised ahead of time.
inline std::string demo_model() {
  const char* other = std::getenv("SHOAL_DEMO_MODEL");
  return other != nullptr ? other : SHOAL_SOURCE_DIR "/deploy/demo-model";
}

}  // namespace shoal
