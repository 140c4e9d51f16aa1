#include "server/admission/finish_rate.h"

#include <cmath>

namespace shoal {
namespace {

constexpr double kMemorySeconds = 10;
// Since the last busy time: what is asked for may be quite another thing by then.
constexpr std::chrono::seconds kForgotten{60};
// Fewer may have come from one step.
constexpr int64_t kEnough = 8;
// As short a time as says something: a step of a small model.
constexpr double kShortest = 0.01;

}  // namespace

void FinishRate::pass(Time now) {
  if (busy_) {
    const double elapsed = std::chrono::duration<double>(now - last_).count();
    const double kept = std::exp(-elapsed / kMemorySeconds);
    count_ *= kept;
    seconds_ = seconds_ * kept + elapsed;
  }
  last_ = now;
}

void FinishRate::set_busy(Time now, bool busy) {
  if (busy == busy_) return;
  if (busy && now - last_ > kForgotten) *this = {};
  pass(now);
  busy_ = busy;
}

void FinishRate::finished(Time now) {
  if (!busy_) return;
  pass(now);
  count_ += 1;
  ++seen_;
}

std::optional<double> FinishRate::per_second(Time now) const {
  FinishRate until_now = *this;
  until_now.pass(now);
  if (seen_ < kEnough || until_now.seconds_ < kShortest) return std::nullopt;
  return until_now.count_ / until_now.seconds_;
}

}  // namespace shoal
