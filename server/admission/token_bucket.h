// TokenBucket: so many a second, and so many at once. The limits come with every question, so that they may
// change while it is in use. Not thread-safe.
#pragma once

#include <algorithm>
#include <chrono>

namespace shoal {

class TokenBucket {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // Full at first. REQUIRES: rate > 0, burst >= 1, `now` does not go back.
  // Until there is a whole token, 0 if there is one now.
  std::chrono::duration<double> wait(Time now, double rate, double burst) {
    if (last_ == Time{}) tokens_ = burst;
    tokens_ = std::min(burst, tokens_ + std::chrono::duration<double>(now - last_).count() * rate);
    last_ = now;
    // A token that is there but for rounding is there: who waits as long as told gets it.
    constexpr double kRounding = 1e-6;
    return std::chrono::duration<double>(tokens_ >= 1 - kRounding ? 0 : (1 - tokens_) / rate);
  }
  void take() { tokens_ -= 1; }
  bool unused() const { return last_ == Time{}; }

 private:
  double tokens_ = 0;
  Time last_{};
};

}  // namespace shoal
