#include "server/top_command.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <utility>

#include "kernels/base/error.h"
#include "server/signals.h"
#include "shoal/v1/inference.grpc.pb.h"

namespace shoal {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kShortCall{5};
// For rates when there is one picture only.
constexpr std::chrono::milliseconds kOnceInterval{500};
constexpr int kPlainWidth = 200;
// Other screen, no cursor; back again.
constexpr const char* kEnter = "\x1b[?1049h\x1b[?25l";
constexpr const char* kLeave = "\x1b[?25h\x1b[?1049l";

// Keys come without waiting for the end of a line.
class RawTerminal {
 public:
  RawTerminal() {
    std::fputs(kEnter, stdout);
    raw_ = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &old_) == 0;
    if (!raw_) return;
    termios now = old_;
    now.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    tcsetattr(STDIN_FILENO, TCSANOW, &now);
  }
  ~RawTerminal() {
    if (raw_) tcsetattr(STDIN_FILENO, TCSANOW, &old_);
    std::fputs(kLeave, stdout);
    std::fflush(stdout);
  }
  RawTerminal(const RawTerminal&) = delete;

  // Waits; true when q was pressed.
  bool wait(std::chrono::milliseconds timeout) const {
    pollfd in{raw_ ? STDIN_FILENO : -1, POLLIN, 0};
    if (poll(&in, 1, static_cast<int>(timeout.count())) <= 0) return false;
    char key = 0;
    return read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q';
  }

 private:
  termios old_{};
  bool raw_ = false;
};

winsize window() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) size = {24, 80, 0, 0};
  return size;
}

class StatusSource {
 public:
  explicit StatusSource(const ServerAddress& address)
      : address_(address), stub_(v1::Inference::NewStub(open_channel(address))) {}

  v1::GetStatusResponse get() const {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kShortCall);
    authorize(address_, &context);
    v1::GetStatusResponse response;
    const grpc::Status status = stub_->GetStatus(&context, {}, &response);
    if (!status.ok()) throw_invalid("{}: no status: {}", address_.server, status.error_message());
    return response;
  }

 private:
  const ServerAddress address_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
};

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

int run_top(const TopOptions& options) {
  const StatusSource source(options.address);
  v1::GetStatusResponse before = source.get();
  Clock::time_point then = Clock::now();
  const std::string& server = options.address.server;
  StopSignals signals({SIGINT, SIGTERM});
  if (options.once || !isatty(STDOUT_FILENO)) {
    signals.wait(kOnceInterval);
    const v1::GetStatusResponse now = source.get();
    fmt::print("{}", top_picture(before, now, seconds_between(then, Clock::now()), server, kPlainWidth, false));
    return 0;
  }
  const RawTerminal terminal;
  const auto interval = std::chrono::milliseconds(static_cast<int64_t>(options.interval * 1000));
  v1::GetStatusResponse now = before;
  std::string trouble;
  for (double seconds = 0; signals.count() == 0;) {
    const winsize size = window();
    std::string picture = top_picture(before, now, seconds, server, size.ws_col, true);
    if (!trouble.empty()) picture += "\n" + trouble.substr(0, size.ws_col) + "\n";
    // Lines that do not fit would scroll the rest away.
    std::string screen = "\x1b[H";
    int rows = 0;
    for (size_t begin = 0, end; begin < picture.size() && rows < size.ws_row - 1; begin = end + 1, ++rows) {
      end = picture.find('\n', begin);
      screen += picture.substr(begin, end - begin) + "\x1b[K\n";
    }
    fmt::print("{}\x1b[Jq: quit", screen);
    std::fflush(stdout);
    if (terminal.wait(interval)) break;
    try {
      v1::GetStatusResponse next = source.get();
      before = std::exchange(now, std::move(next));
      const Clock::time_point last = std::exchange(then, Clock::now());
      seconds = seconds_between(last, then);
      trouble.clear();
    } catch (const InvalidInput& error) {
      trouble = error.what();  // a server that starts again is one to wait for
    }
  }
  return 0;
}

}  // namespace shoal
