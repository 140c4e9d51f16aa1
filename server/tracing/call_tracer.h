// CallTracer: makes the spans of a call when it has ended: the call, and inside it the time in the queue,
// of the prompt (prefill) and of the output (decode). Calls whose caller does not record its trace
// (traceparent with flag 00) are left out; calls without a traceparent begin a trace.
#pragma once

#include <string>
#include <vector>

#include "server/call_observer.h"
#include "server/tracing/otlp_exporter.h"

namespace shoal {

class CallTracer final : public CallObserver {
 public:
  CallTracer(std::string model_name, OtlpOptions options)
      : model_name_(std::move(model_name)), exporter_(std::move(options)) {}
  void on_tokens(const CallRecord&, int32_t, double) override {}
  void on_end(const CallRecord& call) override;
  const OtlpExporter& exporter() const { return exporter_; }

 private:
  const std::string model_name_;
  OtlpExporter exporter_;
};

// Empty: the caller does not want them.
std::vector<Span> call_spans(const CallRecord& call, const std::string& model_name);

}  // namespace shoal
