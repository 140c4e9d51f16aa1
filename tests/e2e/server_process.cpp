#include "tests/e2e/server_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>

namespace shoal {
namespace {

// The load may share the machine with a build.
constexpr int kReadySeconds = 120;

struct ProcessUse {
  pid_t parent = 0;
  double seconds = 0;
};

std::map<pid_t, ProcessUse> all_processes() {
  std::map<pid_t, ProcessUse> processes;
  for (const auto& folder : std::filesystem::directory_iterator("/proc")) {
    const std::string name = folder.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(folder.path() / "stat");
    std::string text{std::istreambuf_iterator<char>(file), {}};
    const size_t end = text.rfind(')');  // the name before it may hold anything
    if (end == std::string::npos) continue;
    std::istringstream fields(text.substr(end + 1));
    std::string field;
    ProcessUse use;
    for (int i = 3; i <= 15 && fields >> field; ++i) {  // proc(5): 4 ppid, 14 utime, 15 stime
      if (i == 4) use.parent = std::stoi(field);
      if (i >= 14) use.seconds += std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
    }
    processes[std::stoi(name)] = use;
  }
  return processes;
}

// A process descends from itself, too.
bool descends_from(const std::map<pid_t, ProcessUse>& processes, pid_t pid, pid_t ancestor) {
  while (pid != ancestor) {
    const auto it = processes.find(pid);
    if (it == processes.end() || pid <= 1) return false;
    pid = it->second.parent;
  }
  return true;
}

}  // namespace

ShoalProcess::ShoalProcess(const std::vector<std::string>& args, const std::vector<std::string>& before) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
  pipe_ = ends[0];
  std::vector<std::string> words = before;
  words.push_back(SHOAL_EXECUTABLE);
  words.insert(words.end(), args.begin(), args.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ == 0) {
    dup2(ends[1], STDERR_FILENO);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  close(ends[1]);
  reader_ = std::thread([this] { read_lines(); });
}

ShoalProcess::~ShoalProcess() {
  if (!reaped_) {
    kill(pid_, SIGKILL);
    wait_exit(30);
  }
  reader_.join();
  close(pipe_);
}

void ShoalProcess::read_lines() {
  std::string line;
  char buffer[4096];
  while (true) {
    const ssize_t count = read(pipe_, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    std::lock_guard lock(mutex_);
    for (ssize_t i = 0; i < count; ++i) {
      if (buffer[i] != '\n') {
        line += buffer[i];
      } else {
        lines_.push_back(std::move(line));
        line.clear();
      }
    }
    if (count <= 0) ended_ = true;
    changed_.notify_all();
    if (count <= 0) return;
  }
}

std::string ShoalProcess::wait_line(const std::string& text, int seconds) {
  std::unique_lock lock(mutex_);
  std::string found;
  changed_.wait_for(lock, std::chrono::seconds(seconds), [&] {
    for (const std::string& line : lines_) {
      if (line.find(text) != std::string::npos) found = line;
    }
    return !found.empty() || ended_;
  });
  return found;
}

void ShoalProcess::send(int signal) { kill(pid_, signal); }

int ShoalProcess::wait_exit(int seconds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!reaped_ && std::chrono::steady_clock::now() < deadline) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      reaped_ = true;
      code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  return code_;
}

std::string ShoalProcess::output() {
  std::lock_guard lock(mutex_);
  std::string all;
  for (const std::string& line : lines_) all += line + "\n";
  return all;
}

std::vector<pid_t> descendants(pid_t pid) {
  const std::map<pid_t, ProcessUse> processes = all_processes();
  std::vector<pid_t> found;
  for (const auto& [id, use] : processes) {
    if (id != pid && descends_from(processes, id, pid)) found.push_back(id);
  }
  return found;
}

double cpu_seconds(pid_t pid) {
  const std::map<pid_t, ProcessUse> processes = all_processes();
  double total = 0;
  for (const auto& [id, use] : processes) {
    if (descends_from(processes, id, pid)) total += use.seconds;
  }
  return total;
}

DemoServer::DemoServer()
    : process({"serve", "--model", demo_model(), "--tensor-parallel-size", "2", "--port", "0"}) {
  const std::string ready = process.wait_line("Ready: ", kReadySeconds);
  const std::string mark = "--server ";
  const size_t begin = ready.find(mark);
  if (begin == std::string::npos) {
    throw std::runtime_error("shoal serve did not become ready:\n" + process.output());
  }
  address = ready.substr(begin + mark.size());
  address = address.substr(0, address.find(' '));
}

DemoServer& DemoServer::instance() {
  static DemoServer server;
  return server;
}

}  // namespace shoal
