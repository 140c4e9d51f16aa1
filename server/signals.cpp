#include "server/signals.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <utility>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// What the handler may touch: lock-free, and set before it is installed.
std::atomic<int> pipe_read{-1}, pipe_write{-1};
std::atomic<int> signals_seen{0};
static_assert(std::atomic<int>::is_always_lock_free);

void on_signal(int) {
  const int saved = errno;
  signals_seen.fetch_add(1);
  [[maybe_unused]] const ssize_t written = write(pipe_write.load(), "s", 1);
  errno = saved;
}

}  // namespace

StopSignals::StopSignals(std::vector<int> signals)
    : signals_(std::move(signals)), old_(signals_.size()) {
  SHOAL_CHECK(pipe_write.load() < 0, "only one at a time");
  int ends[2];
  SHOAL_CHECK(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0, "pipe: errno {}", errno);
  pipe_read = ends[0];
  pipe_write = ends[1];
  signals_seen = 0;
  struct sigaction action {};
  action.sa_handler = &on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < signals_.size(); ++i) sigaction(signals_[i], &action, &old_[i]);
}

StopSignals::~StopSignals() {
  for (size_t i = 0; i < signals_.size(); ++i) sigaction(signals_[i], &old_[i], nullptr);
  close(pipe_write.exchange(-1));
  close(pipe_read.exchange(-1));
}

int StopSignals::wait(std::chrono::milliseconds timeout) {
  pollfd entry{pipe_read.load(), POLLIN, 0};
  if (poll(&entry, 1, static_cast<int>(timeout.count())) > 0) {
    char bytes[64];
    while (read(pipe_read.load(), bytes, sizeof bytes) > 0) {
    }
  }
  return count();
}

int StopSignals::count() const { return signals_seen.load(); }

void StopSignals::wake() {
  [[maybe_unused]] const ssize_t written = write(pipe_write.load(), "w", 1);
}

}  // namespace shoal
