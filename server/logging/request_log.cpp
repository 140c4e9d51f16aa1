#include "server/logging/request_log.h"

#include <algorithm>

#include "server/metrics/server_metrics.h"

namespace shoal {
namespace {

double seconds_between(CallRecord::Time begin, CallRecord::Time end) {
  return std::chrono::duration<double>(end - begin).count();
}

std::string reasons(const CallRecord& call) {
  std::string text;
  for (const char* reason : call.finish_reasons) text += (text.empty() ? "" : ",") + std::string(reason);
  return text;
}

// What came from outside stays on one line.
std::string printable(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return text;
}

// Seconds per token of a sample after its first; negative: there is none.
double per_token(const CallRecord& call) {
  const double after_first = static_cast<double>(call.completion_tokens) / std::max(call.n, 1) - 1;
  if (!call.first_token || after_first <= 0) return -1;
  return seconds_between(*call.first_token, *call.last_token) / after_first;
}

}  // namespace

std::string request_line(const CallRecord& call) {
  std::string line = fmt::format("{} {}", call.method, call_code_name(call.status.code));
  if (!call.context.client->name.empty()) line += " client=" + call.context.client->name;
  if (!call.context.request_id.empty()) line += " x-request-id=" + printable(call.context.request_id);
  if (!call.submitted) return line + fmt::format(" (refused: {})", printable(call.status.message));
  line += fmt::format(" prompt={} cached={} generated={}", call.prompt_tokens, call.cached_tokens,
                      call.completion_tokens);
  if (!call.finish_reasons.empty()) line += " finish=" + reasons(call);
  if (call.first_token) {
    line += fmt::format(" queue={:.3f}s ttft={:.3f}s", call.queue_seconds,
                        seconds_between(call.arrived, *call.first_token));
  }
  if (const double tpot = per_token(call); tpot >= 0) line += fmt::format(" tpot={:.4f}s", tpot);
  line += fmt::format(" total={:.3f}s", seconds_between(call.arrived, *call.ended));
  if (call.status.code != CallCode::kOk) line += fmt::format(" ({})", printable(call.status.message));
  if (!call.prompt.empty()) line += " text=" + json_quoted(call.prompt);
  return line;
}

LogFields::Fields request_fields(const CallRecord& call) {
  LogFields::Fields fields;
  const auto text = [&](const char* name, const std::string& value) {
    if (!value.empty()) fields.emplace_back(name, json_quoted(value));
  };
  const auto number = [&](const char* name, auto value) { fields.emplace_back(name, fmt::format("{}", value)); };
  text("event", "request");
  text("method", call.method);
  text("status", call_code_name(call.status.code));
  if (call.status.code != CallCode::kOk) text("error", call.status.message);
  if (!call.submitted) text("reason", refusal_name(call.status));
  text("client", call.context.client->name);
  text("x_request_id", call.context.request_id);
  text("traceparent", call.context.traceparent);
  if (!call.submitted) return fields;
  number("n", call.n);
  number("max_tokens", call.max_tokens);
  number("prompt_tokens", call.prompt_tokens);
  number("cached_tokens", call.cached_tokens);
  number("completion_tokens", call.completion_tokens);
  text("finish_reasons", reasons(call));
  if (call.first_token) {
    number("queue_seconds", call.queue_seconds);
    number("ttft_seconds", seconds_between(call.arrived, *call.first_token));
  }
  if (const double tpot = per_token(call); tpot >= 0) number("tpot_seconds", tpot);
  number("total_seconds", seconds_between(call.arrived, *call.ended));
  text("prompt", call.prompt);
  return fields;
}

void RequestLog::on_end(const CallRecord& call) {
  const LogFields fields(call.id, request_fields(call));
  spdlog::info("{}", request_line(call));
}

}  // namespace shoal
