// RecentCalls: quantiles over the calls that ended in about the last minute, for GetStatus. Thread-safe;
// a token costs nothing.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <mutex>

#include "server/call_observer.h"

namespace shoal {

class RecentCalls final : public CallObserver {
 public:
  void on_tokens(const CallRecord&, int32_t, double) override {}
  void on_end(const CallRecord& call) override;

  struct Quantiles {
    // Seconds; 0: no calls. Time to first token, and per token after it.
    double ttft_p50 = 0, ttft_p90 = 0, tpot_p50 = 0, tpot_p90 = 0;
  };
  Quantiles quantiles() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Entry {
    Clock::time_point ended{};
    double ttft = 0, tpot = -1;  // tpot < 0: one token only
  };
  mutable std::mutex mutex_;
  std::array<Entry, 1024> last_{};  // guarded by mutex_: a ring
  size_t next_ = 0;                 // guarded by mutex_
};

}  // namespace shoal
