#include "server/logging/log_format.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <unistd.h>

#include <atomic>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"

namespace shoal {
namespace {

thread_local const LogFields* innermost = nullptr;
std::atomic<bool> json_log{false};

// " [chat-1a2b]" behind the level.
class IdFlag final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg&, const std::tm&, spdlog::memory_buf_t& out) override {
    if (innermost == nullptr || innermost->id().empty()) return;
    fmt::format_to(std::back_inserter(out), " [{}]", innermost->id());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<IdFlag>(); }
};

class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& line, spdlog::memory_buf_t& out) override {
    const auto since = line.time.time_since_epoch();
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since);
    const auto to = std::back_inserter(out);
    fmt::format_to(to, R"({{"time":"{:%Y-%m-%dT%H:%M:%S}.{:03}Z","level":"{}","message":{})",
                   fmt::gmtime(static_cast<std::time_t>(seconds.count())),
                   std::chrono::duration_cast<std::chrono::milliseconds>(since - seconds).count(),
                   std::string_view(spdlog::level::to_string_view(line.level).data(),
                                    spdlog::level::to_string_view(line.level).size()),
                   json_quoted(std::string(line.payload.data(), line.payload.size())));
    if (innermost != nullptr) {
      if (!innermost->id().empty()) fmt::format_to(to, R"(,"request_id":{})", json_quoted(innermost->id()));
      for (const auto& [name, value] : innermost->fields()) fmt::format_to(to, R"(,"{}":{})", name, value);
    }
    fmt::format_to(to, "}}\n");
  }
  std::unique_ptr<formatter> clone() const override { return std::make_unique<JsonFormatter>(); }
};

}  // namespace

std::string json_quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

LogFields::LogFields(std::string id, Fields fields)
    : id_(std::move(id)), fields_(std::move(fields)), outer_(std::exchange(innermost, this)) {}
LogFields::~LogFields() { innermost = outer_; }
const LogFields* LogFields::current() { return innermost; }

std::unique_ptr<spdlog::formatter> make_log_formatter(LogFormat format) {
  if (format == LogFormat::kJson) return std::make_unique<JsonFormatter>();
  auto lines = std::make_unique<spdlog::pattern_formatter>();
  lines->add_flag<IdFlag>('*').set_pattern("%Y-%m-%d %H:%M:%S %^%L%$%* %v");
  return lines;
}

bool log_shows_bars() { return !json_log && isatty(STDERR_FILENO); }

void set_up_log(LogFormat format, const std::string& level) {
  json_log = format == LogFormat::kJson;
  const spdlog::level::level_enum from = spdlog::level::from_str(level == "warn" ? "warning" : level);
  if (from == spdlog::level::off) {
    throw_invalid("--log-level {}: use trace, debug, info, warning, error or critical", level);
  }
  spdlog::sink_ptr sink;
  if (format == LogFormat::kJson) {
    sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  } else {
    sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  }
  sink->set_formatter(make_log_formatter(format));
  auto logger = std::make_shared<spdlog::logger>("shoal", std::move(sink));
  logger->set_level(from);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace shoal
