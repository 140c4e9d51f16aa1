// What `shoal serve` says about its engine, in the words that users of vLLM and SGLang know: how the load goes on, what came of it, and every ten
// seconds what it does. Not thread-safe, except where said.
#pragma once

#include <chrono>
#include <string>

#include "server/engine_client.h"

namespace shoal {

// Progress of a load: a bar on a terminal, otherwise a line for every ten per cent.
class LoadProgressLog {
 public:
  explicit LoadProgressLog(bool terminal) : terminal_(terminal) {}
  void update(const EngineStatus& status);
  void end();  // leaves the bar's line

 private:
  using Clock = std::chrono::steady_clock;
  const bool terminal_;
  bool bar_shown_ = false;
  int last_tenth_ = -1;
  uint64_t last_bytes_ = 0;
  Clock::time_point start_{};
};

// "1.50 GiB".
std::string bytes_text(uint64_t bytes);

// The lines of an engine that became ready.
void log_ready(const EngineStatus& status);

// The statistics line; nothing when nothing happened since the last one.
class StatisticsLog {
 public:
  static constexpr std::chrono::seconds kInterval{10};
  void update(const EngineStatus& status);

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
  int64_t prompt_tokens_ = 0, generated_tokens_ = 0;
};

}  // namespace shoal
