#include "server/observability.h"

#include <spdlog/spdlog.h>

#include "server/logging/log_format.h"
#include "server/logging/request_log.h"
#include "server/metrics/http_endpoint.h"
#include "server/tracing/call_tracer.h"

namespace shoal {

void add_observability_flags(CLI::App& app, ObservabilityOptions& o) {
  const std::string group = "Observability";
  app.add_option("--metrics-port", o.metrics_port,
                 "Port of /metrics (Prometheus), /health and /ready over HTTP; 0: any free one; -1: none")
      ->check(CLI::Range(-1, 65535))
      ->group(group)
      ->capture_default_str();
  app.add_option("--metrics-host", o.metrics_host,
                 "Address to listen on for them; whoever reaches it may read them")
      ->group(group)
      ->capture_default_str();
  app.add_option("--log-format", o.log_format, "text, or json: an object a line")
      ->check(CLI::IsMember({"text", "json"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--log-level", o.log_level, "The least that is logged")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error", "critical"}))
      ->group(group)
      ->capture_default_str();
  app.add_flag("--log-requests,!--no-log-requests", o.log_requests,
               "A line for each call when it ends (on by default)")
      ->group(group);
  app.add_flag("--log-prompts", o.log_prompts, "Prompts in those lines: they are what users wrote")
      ->group(group);
  app.add_option("--otlp-endpoint", o.otlp_endpoint,
                 "Collector that gets a trace of each call by OTLP over HTTP: http://host:4318")
      ->group(group);
}

void set_up_log(const ObservabilityOptions& options) {
  set_up_log(options.log_format == "json" ? LogFormat::kJson : LogFormat::kText, options.log_level);
}

class Observability::Impl {
 public:
  Impl(const ObservabilityOptions& options, const MetricsOptions& metrics, FrontEnd& front_end,
       const EngineClient& engine)
      : front_end_(front_end), engine_(engine), metrics_(std::make_shared<ServerMetrics>(metrics)) {
    CallBook& book = front_end.book();
    if (options.metrics_port >= 0) book.observe(metrics_);
    if (options.log_requests) book.observe(std::make_shared<RequestLog>());
    if (options.log_prompts) front_end.keep_prompts();
    if (!options.otlp_endpoint.empty()) {
      tracer_ = std::make_shared<CallTracer>(
          metrics.model_name,
          OtlpOptions{.endpoint = options.otlp_endpoint, .version = metrics.version});
      book.observe(tracer_);
    }
    if (options.metrics_port < 0) return;
    http_ = std::make_unique<HttpEndpoint>(
        options.metrics_host, options.metrics_port,
        HttpEndpoint::Handlers{.metrics = [this] { return text(); },
                               .ready = [this](std::string* why) { return ready(why); }});
    spdlog::info("Metrics on http://{}/metrics, probes on /health and /ready", http_->address());
  }

  std::string metrics_address() const { return http_ ? http_->address() : ""; }

 private:
  std::string text() {
    ServerMetrics::Now now;
    now.engine = engine_.status();
    now.calls = front_end_.book().counts();
    now.draining = front_end_.draining();
    if (tracer_) {
      now.spans_exported = tracer_->exporter().exported();
      now.spans_dropped = tracer_->exporter().dropped();
    }
    return metrics_->text(now);
  }

  bool ready(std::string* why) const {
    const EngineStatus status = engine_.status();
    if (status.state == EngineState::kReady && !front_end_.draining()) return true;
    *why = front_end_.draining()      ? "draining"
           : !status.detail.empty() ? status.detail
                                    : "the model is loading";
    return false;
  }

  FrontEnd& front_end_;
  const EngineClient& engine_;
  const std::shared_ptr<ServerMetrics> metrics_;
  std::shared_ptr<CallTracer> tracer_;
  std::unique_ptr<HttpEndpoint> http_;  // ends first: it asks the others
};

Observability::Observability(const ObservabilityOptions& options, const MetricsOptions& metrics,
                             FrontEnd& front_end, const EngineClient& engine)
    : impl_(std::make_unique<Impl>(options, metrics, front_end, engine)) {}
Observability::~Observability() = default;
std::string Observability::metrics_address() const { return impl_->metrics_address(); }

}  // namespace shoal
