#include "server/progress_bar.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "server/start_log.h"

namespace shoal {

ProgressBar::ProgressBar(std::string label, std::string unit)
    : label_(std::move(label)), unit_(std::move(unit)), terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressBar::~ProgressBar() {
  if (shown_) fmt::print(stderr, "\n");
}

std::string ProgressBar::amount(double value) const {
  if (unit_ == "bytes") return bytes_text(static_cast<uint64_t>(value));
  return fmt::format("{:.0f} {}", value, unit_);
}

void ProgressBar::update(uint64_t done, uint64_t total) {
  const auto now = Clock::now();
  if (start_ == Clock::time_point{}) {
    start_ = now;
    first_ = done;
  }
  if (total == 0) return;
  const double share = static_cast<double>(done) / static_cast<double>(total);
  const int tenth = static_cast<int>(share * 10);
  constexpr std::chrono::milliseconds kBetween{100};
  if (terminal_ ? done < total && now - drawn_ < kBetween : tenth == last_tenth_) return;
  last_tenth_ = tenth;
  drawn_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done - first_) / std::max(seconds, 1e-3);
  std::string text = fmt::format("{:3.0f} % | {} of {}", share * 100,
                                 amount(static_cast<double>(done)),
                                 amount(static_cast<double>(total)));
  if (rate > 0) {
    text += fmt::format(" | {}/s | ETA {:.0f} s", amount(rate),
                        static_cast<double>(total - done) / rate);
  }
  if (!terminal_) {
    spdlog::info("{}: {}", label_, text);
    return;
  }
  constexpr int kWidth = 30;
  const int filled = std::min(static_cast<int>(share * kWidth), kWidth);
  fmt::print(stderr, "\r\033[K{} [{:#<{}}{:.<{}}] {}", label_, "", filled, "", kWidth - filled, text);
  std::fflush(stderr);
  shown_ = true;
}

}  // namespace shoal
