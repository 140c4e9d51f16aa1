#include "server/start_log.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdio>

namespace shoal {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

std::string bytes_text(uint64_t bytes) {
  const double value = static_cast<double>(bytes);
  if (bytes >= uint64_t{1} << 30) return fmt::format("{:.2f} GiB", value / (1 << 30));
  return fmt::format("{:.1f} MiB", value / (1 << 20));
}

void LoadProgressLog::update(const EngineStatus& status) {
  if (status.bytes_total == 0) return;
  if (start_ == Clock::time_point{} || status.bytes_read < last_bytes_) {  // first, or a restart
    start_ = Clock::now();
    last_tenth_ = -1;
  }
  last_bytes_ = status.bytes_read;
  const double share = static_cast<double>(status.bytes_read) / status.bytes_total;
  const int tenth = static_cast<int>(share * 10);
  if (!terminal_ && tenth == last_tenth_) return;
  last_tenth_ = tenth;
  const double rate = status.bytes_read / std::max(seconds_since(start_), 1e-3);
  const double rest = rate > 0 ? (status.bytes_total - status.bytes_read) / rate : 0;
  const std::string text = fmt::format(
      "{:3.0f}% Completed | {}/{} | {}/s | ETA {:.0f} s", share * 100, bytes_text(status.bytes_read),
      bytes_text(status.bytes_total), bytes_text(static_cast<uint64_t>(rate)), rest);
  if (!terminal_) {
    spdlog::info("Loading checkpoint: {}", text);
    return;
  }
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(share * kWidth);
  fmt::print(stderr, "\r\033[KLoading [{:#<{}}{:.<{}}] {}", "", filled, "", kWidth - filled, text);
  std::fflush(stderr);
  bar_shown_ = true;
}

void LoadProgressLog::end() {
  if (bar_shown_) fmt::print(stderr, "\n");
  bar_shown_ = false;
}

void log_ready(const EngineStatus& status) {
  spdlog::info("Model loading took {} and {:.2f} s", bytes_text(status.weight_bytes),
               status.load_seconds);
  for (const std::string& rank : status.ranks) spdlog::info("{}", rank);
  spdlog::info("Available KV cache memory: {}", bytes_text(status.kv_cache_bytes));
  spdlog::info("KV cache size: {} tokens", status.kv_tokens);
  spdlog::info("Maximum concurrency for {} tokens per request: {:.2f}x", status.max_model_len,
               status.max_model_len > 0
                   ? static_cast<double>(status.kv_tokens) / status.max_model_len
                   : 0.0);
}

void StatisticsLog::update(const EngineStatus& status) {
  const double seconds = seconds_since(last_);
  if (seconds < std::chrono::duration<double>(kInterval).count()) return;
  // A restarted engine counts from zero again.
  const int64_t prompt = std::max<int64_t>(status.prompt_tokens - prompt_tokens_, 0);
  const int64_t generated = std::max<int64_t>(status.generated_tokens - generated_tokens_, 0);
  last_ = Clock::now();
  prompt_tokens_ = status.prompt_tokens;
  generated_tokens_ = status.generated_tokens;
  if (prompt == 0 && generated == 0 && status.running == 0 && status.waiting == 0) return;
  // vLLM's words, on CPUs too: scripts read this line.
  const auto percent = [](int64_t part, int64_t whole) {
    return whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0;
  };
  spdlog::info(
      "Avg prompt throughput: {:.1f} tokens/s, Avg generation throughput: {:.1f} tokens/s, "
      "Running: {} reqs, Waiting: {} reqs, GPU KV cache usage: {:.1f}%, Prefix cache hit rate: {:.1f}%",
      prompt / seconds, generated / seconds, status.running, status.waiting,
      percent(status.pages_used, status.pages_total),
      percent(status.prefix_hits, status.prefix_queries));
  if (const OffloadStats& o = status.offload; o.experts_on_host + o.experts_on_disk > 0) {
    spdlog::info(
        "Experts off the device of rank 0 so far: {} streamed, {} read by the CPU, {} of both read from disk, "
        "{} moves",
        bytes_text(o.bytes_streamed), bytes_text(o.bytes_read_by_cpu), bytes_text(o.bytes_from_disk), o.moves);
  }
  const TierStats& t = status.tiers;
  if (t.swapped_out + t.spilled + t.restored + t.loaded == 0) return;
  spdlog::info(
      "KV pages so far: {} swapped out, {} swapped in, {} spilled to host memory, {} restored, {} saved to "
      "files, {} loaded",
      t.swapped_out, t.swapped_in, t.spilled, t.restored, t.saved, t.loaded);
}

}  // namespace shoal
