#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "server/top_command.h"

namespace shoal {
namespace {

constexpr const char* kBold = "\x1b[1m";
constexpr const char* kGreen = "\x1b[32m";
constexpr const char* kYellow = "\x1b[33m";
constexpr const char* kRed = "\x1b[31m";
constexpr const char* kPlain = "\x1b[0m";

std::string bytes(double value) {
  for (const char* unit : {"B", "KiB", "MiB", "GiB"}) {
    if (value < 1024) return fmt::format("{:.{}f} {}", value, *unit == 'B' ? 0 : 1, unit);
    value /= 1024;
  }
  return fmt::format("{:.2f} TiB", value);
}

std::string time(double seconds) {
  if (seconds <= 0) return "-";
  if (seconds < 1) return fmt::format("{:.{}f} ms", seconds * 1000, seconds < 0.01 ? 2 : 0);
  return fmt::format("{:.2f} s", seconds);
}

std::string span(double seconds) {
  const auto s = static_cast<int64_t>(seconds);
  return fmt::format("{}{:02}:{:02}:{:02}", s >= 86400 ? fmt::format("{}d ", s / 86400) : "",
                     s / 3600 % 24, s / 60 % 60, s % 60);
}

const char* state_name(v1::ServerState state) {
  switch (state) {
    case v1::SERVER_STATE_LOADING: return "loading";
    case v1::SERVER_STATE_READY: return "ready";
    case v1::SERVER_STATE_RESTARTING: return "restarting";
    case v1::SERVER_STATE_FAILED: return "failed";
    case v1::SERVER_STATE_DRAINING: return "draining";
    default: return "unknown";
  }
}

class Picture {
 public:
  Picture(int width, bool colour) : width_(width), colour_(colour) {}

  // Cut at the width.
  void line(const std::string& text) { text_ += cut(text) + "\n"; }
  std::string paint(const char* how, const std::string& text) const {
    return colour_ ? how + text + kPlain : text;
  }
  // [#####.....] of `share`, green below 70 %, red from 90 % on.
  std::string bar(double share, int width) const {
    share = std::clamp(share, 0.0, 1.0);
    const int filled = static_cast<int>(share * width + 0.5);
    const std::string text = fmt::format("{:#<{}}{:.<{}}", "", filled, "", width - filled);
    return "[" + paint(share < 0.7 ? kGreen : share < 0.9 ? kYellow : kRed, text) + "]";
  }
  const std::string& text() const { return text_; }

 private:
  // Colours take no columns.
  std::string cut(const std::string& text) const {
    std::string result;
    int columns = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '\x1b') {
        const size_t end = text.find('m', i);
        result += text.substr(i, end - i + 1);
        i = end;
      } else if (columns < width_) {
        result += text[i];
        columns += (static_cast<unsigned char>(text[i]) & 0xC0) != 0x80 ? 1 : 0;
      }
    }
    return result;
  }

  const int width_;
  const bool colour_;
  std::string text_;
};

double rate(uint64_t before, uint64_t now, double seconds) {
  return seconds > 0 && now > before ? static_cast<double>(now - before) / seconds : 0;
}

void head(const v1::GetStatusResponse& s, const std::string& server, Picture& out) {
  const bool good = s.state() == v1::SERVER_STATE_READY;
  out.line(fmt::format("{} {} at {}, {}{}, up {}, {} {}", out.paint(kBold, "shoal top"), s.model(),
                       server, out.paint(good ? kGreen : kYellow, state_name(s.state())),
                       s.detail().empty() ? "" : " (" + s.detail() + ")", span(s.uptime_seconds()),
                       s.world_size(), s.world_size() == 1 ? "rank" : "ranks"));
  out.line("");
}

void load(const v1::GetStatusResponse& before, const v1::GetStatusResponse& s, double seconds,
          Picture& out) {
  const double hits = s.prefix_queries() > 0 ? 100.0 * static_cast<double>(s.prefix_hits()) /
                                                   static_cast<double>(s.prefix_queries())
                                             : 0;
  out.line(fmt::format(
      "tokens/s    generated {:>9.1f}   prompt {:>9.1f}   steps/s {:>8.1f}   last step {}",
      rate(before.generated_tokens(), s.generated_tokens(), seconds),
      rate(before.prompt_tokens(), s.prompt_tokens(), seconds),
      rate(before.steps(), s.steps(), seconds), time(s.last_step_seconds())));
  out.line(fmt::format("last minute TTFT p50 {} p90 {}   per token p50 {} p90 {}",
                       time(s.ttft_p50_seconds()), time(s.ttft_p90_seconds()),
                       time(s.tpot_p50_seconds()), time(s.tpot_p90_seconds())));
  out.line(fmt::format("requests    running {}   waiting {}   calls open {}", s.requests_running(),
                       s.requests_waiting(), s.streams_open()));
  out.line(fmt::format("calls       ok {}   cancelled {}   deadline {}   failed {}   refused {}",
                       s.calls_ok(), s.calls_cancelled(), s.calls_deadline_exceeded(),
                       s.calls_failed(), s.calls_rejected()));
  const double used = s.kv_pages_total() > 0 ? static_cast<double>(s.kv_pages_used()) /
                                                   static_cast<double>(s.kv_pages_total())
                                             : 0;
  out.line(fmt::format(
      "KV pages    {} {:>5.1f} %   {} of {}   prefix hits {:.1f} %   preemptions {}",
      out.bar(used, 20), 100 * used, s.kv_pages_used(), s.kv_pages_total(), hits, s.preemptions()));
  if (s.pages_swapped_out() + s.pages_spilled() + s.pages_restored() + s.pages_loaded() > 0) {
    out.line(fmt::format(
        "page moves  swapped {} out {} in   spilled {} restored {}   files {} saved {} loaded",
        s.pages_swapped_out(), s.pages_swapped_in(), s.pages_spilled(), s.pages_restored(),
        s.pages_saved(), s.pages_loaded()));
  }
  out.line(fmt::format("front end   {} resident   engine restarts {}",
                       bytes(static_cast<double>(s.process_resident_bytes())),
                       s.engine_restarts()));
  if (s.experts().mean_imbalance() > 0) {
    const v1::ExpertStatus& e = s.experts();
    out.line(
        fmt::format("experts     busiest/mean {:.2f} over layers, {:.2f} in layer {} (the worst), "
                    "{:.2f} over ranks   idle {}",
                    e.mean_imbalance(), e.worst_imbalance(), e.worst_layer(), e.rank_imbalance(),
                    e.idle_experts()));
  }
  out.line("");
}

uint64_t sent(const v1::RankStatus& r) {
  return r.bytes_all_reduce() + r.bytes_all_gather() + r.bytes_reduce_scatter() +
         r.bytes_all_to_all() + r.bytes_gather();
}

void ranks(const v1::GetStatusResponse& before, const v1::GetStatusResponse& s, double seconds,
           Picture& out) {
  if (s.rank_status_size() == 0) return;
  out.line(
      out.paint(kBold, fmt::format("{:<5} {:>10} {:>10} {:>12} {:>12} {:>11} {:>10}  {}", "rank",
                                   "step", "exchange", "all-to-all/s", "sent/s", "expert rows",
                                   "resident", "device memory: taken of planned")));
  uint64_t rows = 0;
  for (const v1::RankStatus& r : s.rank_status()) rows += r.expert_rows();
  for (int i = 0; i < s.rank_status_size(); ++i) {
    const v1::RankStatus& r = s.rank_status(i);
    const v1::RankStatus old =
        i < before.rank_status_size() && before.rank_status(i).steps() <= r.steps()
            ? before.rank_status(i)
            : v1::RankStatus();
    // Of this interval's steps; when there were none, of all.
    const bool fresh = r.steps() > old.steps();
    const double steps = static_cast<double>(fresh ? r.steps() - old.steps() : r.steps());
    const auto per_step = [&](double now, double then) {
      return steps > 0 ? time((fresh ? now - then : now) / steps) : std::string("-");
    };
    uint64_t planned = 0, taken = 0;
    for (const v1::MemoryUseStatus& use : r.memory()) {
      planned += use.planned_bytes();
      taken += use.taken_bytes();
    }
    const double share =
        planned > 0 ? static_cast<double>(taken) / static_cast<double>(planned) : 0;
    const std::string of_rows =
        rows == 0 ? "-"
                  : fmt::format("{:.1f} %", 100.0 * static_cast<double>(r.expert_rows()) /
                                                static_cast<double>(rows));
    out.line(fmt::format("{:<5} {:>10} {:>10} {:>12} {:>12} {:>11} {:>10}  {} of {} ({:.0f} %)", i,
                         per_step(r.step_seconds(), old.step_seconds()),
                         per_step(r.collective_seconds(), old.collective_seconds()),
                         bytes(rate(old.bytes_all_to_all(), r.bytes_all_to_all(), seconds)),
                         bytes(rate(sent(old), sent(r), seconds)), of_rows,
                         bytes(static_cast<double>(r.resident_bytes())),
                         bytes(static_cast<double>(taken)), bytes(static_cast<double>(planned)),
                         100 * share));
  }
  // Plan against actual by use, of all ranks.
  out.line("");
  std::vector<std::string> uses;
  for (const v1::MemoryUseStatus& use : s.rank_status(0).memory()) uses.push_back(use.use());
  for (const std::string& name : uses) {
    uint64_t planned = 0, taken = 0;
    for (const v1::RankStatus& r : s.rank_status()) {
      for (const v1::MemoryUseStatus& use : r.memory()) {
        if (use.use() != name) continue;
        planned += use.planned_bytes();
        taken += use.taken_bytes();
      }
    }
    const double share = planned > 0 ? static_cast<double>(taken) / static_cast<double>(planned)
                         : taken > 0 ? 1
                                     : 0;
    out.line(fmt::format("{:<15} {:>10} planned {:>10} taken {:>5.0f} %", name,
                         bytes(static_cast<double>(planned)), bytes(static_cast<double>(taken)),
                         100 * share));
  }
}

}  // namespace

std::string top_picture(const v1::GetStatusResponse& before, const v1::GetStatusResponse& now,
                        double seconds, const std::string& server, int width, bool colour) {
  Picture out(width, colour);
  head(now, server, out);
  load(before, now, seconds, out);
  ranks(before, now, seconds, out);
  return out.text();
}

}  // namespace shoal
