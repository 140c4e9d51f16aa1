#include "server/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <string_view>

extern "C" {  // glibc 2.36 forgot to say so itself
}

#include "kernels/base/error.h"

namespace shoal {
namespace {

constexpr int kCannotRun = 2;  // the exit code of bad input: starting again would not help

std::string this_executable() {
  return std::filesystem::read_symlink("/proc/self/exe").string();
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (std::string& s : strings) result.push_back(s.data());
  result.push_back(nullptr);
  return result;
}

// Between fork and exec of a process with threads: only async-signal-safe calls, no memory is taken.
[[noreturn]] void become(char* const* argv, char* const* environment, int output, bool inherit_stdout,
                         pid_t parent, const char* error, size_t error_size) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(kCannotRun);  // it died before prctl
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = open("/dev/null", O_RDONLY);
  dup2(null, STDIN_FILENO);
  if (!inherit_stdout) dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  // Sockets and files of the front end are not the ranks' business.
  close_range(STDERR_FILENO + 1, ~0u, CLOSE_RANGE_CLOEXEC);
  execvpe(argv[0], argv, environment);
  const ssize_t ignored = write(STDERR_FILENO, error, error_size);
  static_cast<void>(ignored);
  _exit(kCannotRun);
}

}  // namespace

std::vector<std::string> rank_command(const EngineOptions& o, const std::string& socket_path) {
  std::vector<std::string> command = {
      this_executable(),
      "rank",
      "--model=" + o.model,
      "--revision=" + o.revision,
      "--load-format=" + o.load_format,
      "--device=" + o.device,
      "--dtype=" + o.dtype,
      "--kv-cache-dtype=" + o.kv_cache_dtype,
      "--quantization=" + o.quantization,
      fmt::format("--tensor-parallel-size={}", o.tensor_parallel_size),
      fmt::format("--enable-dp-attention={}", o.dp_attention),
      "--expert-exchange=" + o.expert_exchange,
      fmt::format("--threads-per-rank={}", o.threads_per_rank),
      fmt::format("--max-model-len={}", o.max_model_len),
      fmt::format("--max-num-seqs={}", o.max_num_seqs),
      fmt::format("--max-num-batched-tokens={}", o.max_num_batched_tokens),
      fmt::format("--block-size={}", o.page_size),
      fmt::format("--kv-cache-tokens={}", o.kv_cache_tokens),
      fmt::format("--kv-cache-memory={}", o.kv_cache_memory_bytes),
      fmt::format("--gpu-memory-utilization={}", o.gpu_memory_utilization),
      "--expert-offload=" + o.expert_offload,
      fmt::format("--num-gpu-experts={}", o.num_gpu_experts),
      fmt::format("--enforce-eager={}", o.enforce_eager),
      fmt::format("--enable-prefix-caching={}", o.enable_prefix_caching),
      fmt::format("--async-scheduling={}", o.async_scheduling),
      "--swap-space=" + o.swap_space,
      "--preemption-mode=" + o.preemption_mode,
      "--kv-checkpoint-size=" + o.kv_checkpoint_size,
      "--socket=" + socket_path,
  };
  // An empty value would take the next argument for its own.
  if (!o.gpu_memory_limit.empty()) command.push_back("--gpu-memory-limit=" + o.gpu_memory_limit);
  if (!o.kv_checkpoint_dir.empty()) command.push_back("--kv-checkpoint-dir=" + o.kv_checkpoint_dir);
  if (!o.host_memory.empty()) command.push_back("--host-memory=" + o.host_memory);
  if (!o.gemm_cache.empty()) command.push_back("--gemm-cache=" + o.gemm_cache);
  return command;
}

std::string describe(const ProcessExit& exit) {
  if (exit.signal != 0) return fmt::format("signal {} ({})", exit.signal, strsignal(exit.signal));
  return fmt::format("exit code {}", exit.code);
}

RankProcesses::RankProcesses(RankWorld world, Observer observer) : observer_(std::move(observer)) {
  const std::vector<char*> argv = pointers(world.command);
  const std::vector<char*> envp = pointers(world.environment);
  const std::string error =
      fmt::format("shoal: error: {} cannot be run: is it installed (openmpi-bin) and in PATH?\n",
                  world.command.at(0));
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw DeviceFault(fmt::format("pipe: {}", strerror(errno)));
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ == 0) {
    become(argv.data(), envp.data(), ends[1], observer_.inherit_stdout, parent, error.data(),
           error.size());
  }
  close(ends[1]);
  output_ = ends[0];
  if (pid_ < 0) {
    close(output_);
    throw DeviceFault(fmt::format("fork: {}", strerror(errno)));
  }
  setpgid(pid_, pid_);  // as the child does: whoever comes first
  // glibc 2.36 declares pidfd_open without C linkage.
  pidfd_ = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
  watcher_ = std::thread([this] { watch(); });
}

RankProcesses::~RankProcesses() {
  terminate(std::chrono::milliseconds(0));
  watcher_.join();
  close(output_);
  if (pidfd_ >= 0) close(pidfd_);
}

void RankProcesses::watch() {
  std::string text;
  const auto give_lines = [&] {
    size_t begin = 0;
    for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      if (end > begin && observer_.on_line) observer_.on_line(text.substr(begin, end - begin));
    }
    text.erase(0, begin);
    constexpr size_t kLongest = 64 << 10;  // a line that does not end is cut
    if (text.size() > kLongest) text += '\n';
  };
  fcntl(output_, F_SETFL, O_NONBLOCK);
  bool open = true, exited = false;
  // Until the process is gone, not until its output ends: what it started may hold the pipe longer.
  while (!exited) {
    struct pollfd waits[2] = {{pidfd_, POLLIN, 0}, {open ? output_ : -1, POLLIN, 0}};
    // Without a pidfd (an old kernel) looks ten times a second.
    if (poll(waits, 2, pidfd_ >= 0 ? -1 : 100) < 0 && errno != EINTR) break;
    if (pidfd_ >= 0) {
      exited = (waits[0].revents & POLLIN) != 0;
    } else {
      siginfo_t info = {};
      exited = waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
               info.si_pid == pid_;
    }
    char buffer[4096];
    for (ssize_t n; open && (n = read(output_, buffer, sizeof buffer)) != -1;) {
      if (n == 0) open = false;
      text.append(buffer, static_cast<size_t>(n));
      give_lines();
    }
  }
  if (!text.empty()) {
    text += '\n';
    give_lines();
  }
  int status = 0;
  {
    const std::lock_guard lock(mutex_);
    waitpid(pid_, &status, 0);
    reaped_ = true;
  }
  // A container's first process is the parent of whoever has lost his own: ranks of an mpirun that was killed.
  // There are no other children.
  if (getpid() == 1) {
    while (waitpid(-1, nullptr, WNOHANG) > 0) continue;
  }
  const ProcessExit exit = WIFSIGNALED(status) ? ProcessExit{.signal = WTERMSIG(status)}
                                               : ProcessExit{.code = WEXITSTATUS(status)};
  if (observer_.on_exit) observer_.on_exit(exit);
  const std::lock_guard lock(mutex_);
  done_ = true;
  changed_.notify_all();
}

bool RankProcesses::wait(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [&] { return done_; });
}

void RankProcesses::signal_group(int signal) {
  const std::lock_guard lock(mutex_);
  if (!reaped_) kill(-pid_, signal);
}

void RankProcesses::terminate(std::chrono::milliseconds grace) {
  if (wait(std::chrono::milliseconds(0))) return;
  if (grace.count() > 0) {
    signal_group(SIGTERM);
    if (wait(grace)) return;
  }
  signal_group(SIGKILL);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done_; });
}

bool started_by_mpirun() { return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr; }

int run_self_under_mpirun(int ranks) {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> command;
  for (std::string argument; std::getline(file, argument, '\0');) command.push_back(argument);
  command.at(0) = this_executable();
  ProcessExit exit;
  std::set<std::string> errors;
  RankProcesses processes(
      make_rank_world({}, ranks, std::move(command), ""),
      {.on_line =
           [&](const std::string& line) {
             if (line.starts_with("shoal: error:") && !errors.insert(line).second) return;
             fmt::print(stderr, "{}\n", line);
           },
       .on_exit = [&](const ProcessExit& e) { exit = e; },
       .inherit_stdout = true});
  while (!processes.wait(std::chrono::hours(1))) continue;
  return exit.signal != 0 ? 128 + exit.signal : exit.code;
}

}  // namespace shoal
