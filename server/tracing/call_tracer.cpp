#include "server/tracing/call_tracer.h"

#include <algorithm>
#include <utility>

#include "server/metrics/server_metrics.h"
#include "server/tracing/trace_context.h"

namespace shoal {
namespace {

using SystemTime = std::chrono::system_clock::time_point;

double seconds_between(CallRecord::Time begin, CallRecord::Time end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

std::vector<Span> call_spans(const CallRecord& call, const std::string& model_name) {
  TraceContext context{random_hex(32), "", true};
  if (const auto given = parse_traceparent(call.context.traceparent)) context = *given;
  if (!context.sampled) return {};
  // Steady times as the system's clock says them now: spans of one call fit together also when it is set.
  const SystemTime now = std::chrono::system_clock::now();
  const CallRecord::Time steady_now = std::chrono::steady_clock::now();
  const auto at = [&](CallRecord::Time time) {
    return now - std::chrono::duration_cast<SystemTime::duration>(steady_now - time);
  };
  std::vector<Span> spans(1);
  Span& whole = spans[0];
  whole.trace_id = context.trace_id;
  whole.span_id = random_hex(16);
  whole.parent_id = context.parent_id;
  whole.name = std::string("shoal.v1.Inference/") + call.method;
  whole.server = true;
  whole.begin = at(call.arrived);
  whole.end = at(*call.ended);
  whole.failed = call.status.code != CallCode::kOk;
  whole.message = call.status.message;
  const auto attribute = [&](const char* key, const auto& value) { whole.attributes.emplace_back(key, value); };
  attribute("rpc.system", std::string("grpc"));
  attribute("rpc.grpc.status_code", static_cast<int64_t>(call.status.code));
  attribute("gen_ai.response.model", model_name);
  if (!call.id.empty()) attribute("gen_ai.request.id", call.id);
  if (!call.context.request_id.empty()) attribute("http.request.header.x-request-id", call.context.request_id);
  if (!call.context.client->name.empty()) attribute("enduser.id", call.context.client->name);
  if (!call.submitted) return spans;
  attribute("gen_ai.request.n", int64_t{call.n});
  attribute("gen_ai.request.max_tokens", int64_t{call.max_tokens});
  attribute("gen_ai.usage.prompt_tokens", int64_t{call.prompt_tokens});
  attribute("gen_ai.usage.completion_tokens", int64_t{call.completion_tokens});
  attribute("gen_ai.latency.e2e", seconds_between(call.arrived, *call.ended));
  if (!call.first_token) return spans;
  attribute("gen_ai.latency.time_in_queue", call.queue_seconds);
  attribute("gen_ai.latency.time_to_first_token", seconds_between(call.arrived, *call.first_token));

  const auto queued = std::chrono::duration_cast<CallRecord::Time::duration>(
      std::chrono::duration<double>(call.queue_seconds));
  const CallRecord::Time begun = std::min(*call.submitted + queued, *call.first_token);
  const std::string call_span = whole.span_id;  // spans grows
  const auto part = [&](const char* name, CallRecord::Time begin, CallRecord::Time end) {
    Span span;
    span.trace_id = context.trace_id;
    span.span_id = random_hex(16);
    span.parent_id = call_span;
    span.name = name;
    span.begin = at(begin);
    span.end = at(end);
    spans.push_back(std::move(span));
  };
  part("queue", *call.submitted, begun);
  part("prefill", begun, *call.first_token);
  part("decode", *call.first_token, *call.last_token);
  return spans;
}

void CallTracer::on_end(const CallRecord& call) {
  if (std::vector<Span> spans = call_spans(call, model_name_); !spans.empty()) exporter_.add(std::move(spans));
}

}  // namespace shoal
