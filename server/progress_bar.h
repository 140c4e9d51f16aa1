// ProgressBar: how far a long command is, on stderr: a bar on a terminal, otherwise a line for every ten
// per cent.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace shoal {

class ProgressBar {
 public:
  // `unit`: of the amounts: "bytes" are shown as such.
  ProgressBar(std::string label, std::string unit);
  ~ProgressBar();
  // With rate and time left, of what was done since the first call.
  void update(uint64_t done, uint64_t total);

 private:
  using Clock = std::chrono::steady_clock;
  std::string amount(double value) const;

  const std::string label_, unit_;
  const bool terminal_;
  bool shown_ = false;
  int last_tenth_ = -1;
  uint64_t first_ = 0;
  Clock::time_point start_{}, drawn_{};
};

}  // namespace shoal
