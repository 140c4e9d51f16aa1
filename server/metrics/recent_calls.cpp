#include "server/metrics/recent_calls.h"

#include <algorithm>
#include <vector>

namespace shoal {
namespace {

constexpr std::chrono::seconds kWindow{60};

double quantile(std::vector<double>& values, double q) {
  if (values.empty()) return 0;
  const auto at = values.begin() + static_cast<int64_t>(q * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

}  // namespace

void RecentCalls::on_end(const CallRecord& call) {
  if (!call.first_token || !call.ended) return;
  using Seconds = std::chrono::duration<double>;
  Entry entry;
  entry.ended = *call.ended;
  entry.ttft = Seconds(*call.first_token - call.arrived).count();
  const double after_first = static_cast<double>(call.completion_tokens) / call.n - 1;
  if (after_first > 0) entry.tpot = Seconds(*call.last_token - *call.first_token).count() / after_first;
  const std::lock_guard lock(mutex_);
  last_[next_] = entry;
  next_ = (next_ + 1) % last_.size();
}

RecentCalls::Quantiles RecentCalls::quantiles() const {
  std::vector<double> ttft, tpot;
  {
    const Clock::time_point since = Clock::now() - kWindow;
    const std::lock_guard lock(mutex_);
    for (const Entry& entry : last_) {
      if (entry.ended == Clock::time_point{} || entry.ended < since) continue;
      ttft.push_back(entry.ttft);
      if (entry.tpot >= 0) tpot.push_back(entry.tpot);
    }
  }
  return {quantile(ttft, .5), quantile(ttft, .9), quantile(tpot, .5), quantile(tpot, .9)};
}

}  // namespace shoal
