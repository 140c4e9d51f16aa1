#include "server/drain.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "server/engine_supervisor.h"
#include "server/front_end.h"
#include "server/grpc_server.h"
#include "server/service_notify.h"
#include "server/signals.h"

namespace shoal {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// A gateway that probes health sees NOT_SERVING before new calls are refused.
constexpr milliseconds kProbePeriod{500};
// What calls that were ended get to hear of it; gRPC cancels them then. Most take a millisecond, hundreds on a busy
// machine more; a client that does not read takes all of it.
constexpr milliseconds kLastWords{1500};
constexpr milliseconds kTick{50};
// What ranks get to end by themselves.
constexpr milliseconds kStopGrace{5000};
// From the last call's end to that of the process, for systemd: both of the above, and what killing takes.
constexpr milliseconds kEndMargin{15'000};

bool hurried(const Served& s) { return s.signals.count() >= 2; }

void end_engine(const Served& s) {
  s.engine.begin_stop();
  const Clock::time_point deadline = Clock::now() + kStopGrace;
  while (!s.engine.wait_stopped(kTick)) {
    if (hurried(s) || Clock::now() > deadline) s.engine.kill();
  }
}

}  // namespace

void drain(const Served& s, milliseconds timeout) {
  s.server.set_serving(false);
  s.notify.stopping();
  s.notify.extend(timeout + kEndMargin);
  spdlog::info("Shutting down: {} calls finish within {:.0f} s (--drain-timeout)",
               s.front_end.book().counts().open, static_cast<double>(timeout.count()) / 1000);
  if (s.front_end.book().counts().open > 0 && !hurried(s)) s.signals.wait(kProbePeriod);
  s.front_end.drain();
  const Clock::time_point deadline = Clock::now() + timeout;
  while (!hurried(s) && Clock::now() < deadline) {
    const auto open = s.front_end.book().counts().open;
    if (open == 0) break;
    s.notify.status(fmt::format("Draining: {} calls", open));
    s.notify.alive();
    s.signals.wait(kTick);
  }
  s.front_end.book().end_all({CallCode::kUnavailable, "the server is shutting down"});
  if (hurried(s)) s.engine.kill();
  s.server.shutdown(kLastWords);
  end_engine(s);
}

}  // namespace shoal
