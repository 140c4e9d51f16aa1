// OtlpExporter: sends spans to a collector by OTLP/HTTP in JSON (opentelemetry.io/docs/specs/otlp). One
// thread sends in batches; a queue of bounded length is between it and the calls, which never wait: what
// does not fit, or what the collector does not take, is dropped and counted.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace shoal {

struct Span {
  std::string trace_id, span_id, parent_id;  // hex; parent_id "": none
  std::string name;
  bool server = false;  // the span of a call as this server sees it, or a part of one
  std::chrono::system_clock::time_point begin{}, end{};
  struct Attribute {
    enum class Kind { kText, kWhole, kReal } kind;
    std::string key, text;
    int64_t whole = 0;
    double real = 0;
    Attribute(std::string k, std::string value) : kind(Kind::kText), key(std::move(k)), text(std::move(value)) {}
    Attribute(std::string k, int64_t value) : kind(Kind::kWhole), key(std::move(k)), whole(value) {}
    Attribute(std::string k, double value) : kind(Kind::kReal), key(std::move(k)), real(value) {}
  };
  std::vector<Attribute> attributes;
  bool failed = false;
  std::string message;  // with failed
};

struct OtlpOptions {
  std::string endpoint;  // http://host:4318 or https://..; spans go to its path + /v1/traces
  std::string service_name = "shoal", version;
  size_t max_queued = 8192;  // spans
  std::chrono::milliseconds interval{1000};
};

class OtlpExporter {
 public:
  // Throws InvalidInput for an endpoint that is none. No connection is made before there are spans.
  explicit OtlpExporter(OtlpOptions options);
  // Sends what is queued, for two seconds at most.
  ~OtlpExporter();

  // All of them or none. Thread-safe, returns at once.
  void add(std::vector<Span> spans);
  uint64_t exported() const;
  uint64_t dropped() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// The body of a request: ExportTraceServiceRequest.
std::string otlp_json(const OtlpOptions& options, const std::vector<Span>& spans);

}  // namespace shoal
