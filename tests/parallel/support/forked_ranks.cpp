#include "tests/parallel/support/forked_ranks.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "kernels/base/error.h"

namespace shoal::test {
namespace {

// A star of sockets around rank 0. A rank that is gone closes its socket: DeviceFault.
class SocketGroup final : public ProcessGroup {
 public:
  // sockets: rank 0's ends by rank; elsewhere one, to rank 0.
  SocketGroup(int rank, int size, std::vector<int> sockets)
      : rank_(rank), size_(size), sockets_(std::move(sockets)) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void broadcast(std::vector<std::byte>& message) override {
    if (rank_ != 0) {
      message = receive(0);
      return;
    }
    for (int r = 1; r < size_; ++r) send(r, message);
  }
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte> message) override {
    if (rank_ != 0) {
      send(0, message);
      return {};
    }
    std::vector<std::vector<std::byte>> all{{message.begin(), message.end()}};
    for (int r = 1; r < size_; ++r) all.push_back(receive(r));
    return all;
  }
  int64_t min(int64_t value) override {
    std::vector<std::byte> result(sizeof(value));
    for (const auto& other : gather(std::as_bytes(std::span(&value, 1)))) {
      int64_t theirs = 0;
      std::memcpy(&theirs, other.data(), sizeof(theirs));
      value = std::min(value, theirs);
    }
    std::memcpy(result.data(), &value, sizeof(value));
    broadcast(result);
    std::memcpy(&value, result.data(), sizeof(value));
    return value;
  }
  void barrier() override { min(0); }
  [[noreturn]] void abort(const std::string& reason) override {
    std::fprintf(stderr, "abort: %s\n", reason.c_str());
    _exit(3);
  }

 private:
  void move(int peer, auto* data, size_t bytes, const auto& call) {
    for (size_t done = 0; done < bytes;) {
      const ssize_t n = call(sockets_[peer], data + done, bytes - done);
      if (n <= 0) throw DeviceFault(fmt::format("control: rank {} is gone", peer));
      done += n;
    }
  }
  void send(int peer, std::span<const std::byte> message) {
    const auto write = [](int fd, const std::byte* data, size_t bytes) {
      return ::send(fd, data, bytes, MSG_NOSIGNAL);
    };
    const size_t bytes = message.size();
    move(peer, reinterpret_cast<const std::byte*>(&bytes), sizeof(bytes), write);
    move(peer, message.data(), bytes, write);
  }
  std::vector<std::byte> receive(int peer) {
    size_t bytes = 0;
    move(peer, reinterpret_cast<std::byte*>(&bytes), sizeof(bytes), read);
    std::vector<std::byte> message(bytes);
    move(peer, message.data(), bytes, read);
    return message;
  }

  int rank_, size_;
  std::vector<int> sockets_;
};

std::string run_body(ProcessGroup& group, const std::function<std::string(ProcessGroup&)>& body) {
  try {
    return body(group);
  } catch (const std::exception& e) {
    return std::string("threw: ") + e.what();
  }
}

}  // namespace

std::vector<RankResult> run_forked(int size,
                                   const std::function<std::string(ProcessGroup&)>& body) {
  struct Child {
    pid_t pid;
    int report;  // the reading end
  };
  std::vector<std::array<int, 2>> stars(size, {-1, -1});
  for (int r = 1; r < size; ++r) {
    SHOAL_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stars[r].data()) == 0);
  }
  std::fflush(nullptr);
  std::vector<Child> children;
  for (int r = 0; r < size; ++r) {
    std::array<int, 2> report{};
    SHOAL_CHECK(pipe(report.data()) == 0);
    const pid_t pid = fork();
    SHOAL_CHECK(pid >= 0);
    if (pid == 0) {
      close(report[0]);
      std::vector<int> sockets(r == 0 ? size : 1);
      for (int s = 1; s < size; ++s) {
        // Only this rank's ends stay open, so that a death shows on the other side.
        if (r == 0) sockets[s] = stars[s][0];
        if (r == s) sockets[0] = stars[s][1];
        if (r != 0) close(stars[s][0]);
        if (r != s) close(stars[s][1]);
      }
      SocketGroup group(r, size, std::move(sockets));
      const std::string text = run_body(group, body);
      const bool written = write(report[1], text.data(), text.size()) >= 0;
      std::exit(written ? 0 : 1);  // not _exit, which writes no coverage
    }
    close(report[1]);
    children.push_back({pid, report[0]});
  }
  for (const auto& star : stars) {
    if (star[0] >= 0) close(star[0]);
    if (star[1] >= 0) close(star[1]);
  }
  std::vector<RankResult> results(size);
  const auto deadline = std::chrono::steady_clock::now() + kForkedLimit;
  for (int r = 0; r < size; ++r) {
    int status = 0;
    while (waitpid(children[r].pid, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > deadline) {
        results[r].hung = true;
        kill(children[r].pid, SIGKILL);
        waitpid(children[r].pid, &status, 0);
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    results[r].killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && !results[r].hung;
    char text[4096];
    for (ssize_t n; (n = read(children[r].report, text, sizeof(text))) > 0;) {
      results[r].report.append(text, n);
    }
    close(children[r].report);
  }
  return results;
}

}  // namespace shoal::test
