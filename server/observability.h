// Observability: what a server tells about itself beside its answers: /metrics and probes over HTTP, a log
// line for each call, spans to a collector. Made of server/metrics, server/logging, server/tracing.
#pragma once

#include <memory>
#include <string>

#include <CLI/CLI.hpp>

#include "server/front_end.h"
#include "server/metrics/server_metrics.h"

namespace shoal {

struct ObservabilityOptions {
  std::string metrics_host = "127.0.0.1";  // --metrics-host
  int metrics_port = -1;                   // --metrics-port; -1: no HTTP; 0: any free one
  std::string log_format = "text";         // --log-format text|json
  std::string log_level = "info";          // --log-level
  bool log_requests = true;                // --no-log-requests
  bool log_prompts = false;                // --log-prompts
  std::string otlp_endpoint;               // --otlp-endpoint; empty: no traces
};

void add_observability_flags(CLI::App& app, ObservabilityOptions& options);
// --log-format and --log-level: before the first line.
void set_up_log(const ObservabilityOptions& options);

class Observability {
 public:
  // Watches the calls of `front_end` from now on; both must outlive it. Throws InvalidInput for an address
  // that cannot be listened on, or a collector that is none.
  Observability(const ObservabilityOptions& options, const MetricsOptions& metrics, FrontEnd& front_end,
                const EngineClient& engine);
  ~Observability();
  // Where /metrics is; "" without.
  std::string metrics_address() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
