// FinishRate: sequences that finish in a second while others wait for their place, over about the last ten
// seconds of that. Times when nobody waits say nothing about how fast places come free, and are left out; what was before a
// minute of such is forgotten.
// Not thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace shoal {

class FinishRate {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // From now on others wait, or nobody does.
  void set_busy(Time now, bool busy);
  void finished(Time now);
  // Nothing until enough have finished to tell.
  std::optional<double> per_second(Time now) const;

 private:
  void pass(Time now);

  bool busy_ = false;
  Time last_{};
  double count_ = 0, seconds_ = 0;  // both forgotten alike with time
  int64_t seen_ = 0;
};

}  // namespace shoal
