// How `shoal serve` writes its log to stderr: lines for people, or one JSON object a line
// (--log-format json): {"time": "2026-11-24T18:00:00.123Z", "level": "info", "message": "...",
// "request_id": "chat-1a2b", ...}. Secrets and prompts are in neither, unless --log-prompts asks.
#pragma once

#include <spdlog/spdlog.h>

#include <string>
#include <utility>
#include <vector>

namespace shoal {

enum class LogFormat { kText, kJson };

// Makes the default logger write to stderr in that format, from `level` on: trace, debug, info, warning,
// error, critical. Throws InvalidInput for another.
void set_up_log(LogFormat format, const std::string& level);
// Whether a progress bar may be drawn: stderr is a terminal, and its lines are for people.
bool log_shows_bars();
// The same formats for a sink that is not stderr (tests).
std::unique_ptr<spdlog::formatter> make_log_formatter(LogFormat format);

// Fields that every line of this thread carries while it lives: of a call, its id first. Nested: only the
// innermost counts.
class LogFields {
 public:
  // Values as JSON: quoted by json_quoted(), or numbers.
  using Fields = std::vector<std::pair<const char*, std::string>>;
  // `id` is in lines of both formats ("request_id" in JSON), `fields` in JSON only, where the text of the
  // message says the same.
  explicit LogFields(std::string id, Fields fields = {});
  ~LogFields();
  LogFields(const LogFields&) = delete;

  const std::string& id() const { return id_; }
  const Fields& fields() const { return fields_; }
  static const LogFields* current();  // null: none

 private:
  const std::string id_;
  const Fields fields_;
  const LogFields* const outer_;
};

// "text" with quotes and escapes; bytes that are no UTF-8 become U+FFFD.
std::string json_quoted(const std::string& text);

}  // namespace shoal
