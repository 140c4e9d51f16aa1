// ServerMetrics: the numbers behind /metrics (metric_list.h). Calls are counted as they happen; what the
// engine and the process count themselves is read when somebody asks for the text.
//
// Thread-safe. A token costs one observation of a histogram, under that histogram's own mutex, which
// nobody else holds but a scrape.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "server/call.h"
#include "server/call_observer.h"
#include "server/engine_client.h"

namespace shoal {

struct MetricsOptions {
  std::string model_name, version;
  int64_t context_tokens = 4096;  // the largest bucket of tokens of a call is about that
  // For cache_config_info.
  int32_t page_size = 16;
  std::string cache_dtype = "auto";
  bool prefix_caching = true;
};

class ServerMetrics final : public CallObserver {
 public:
  explicit ServerMetrics(const MetricsOptions& options);
  ~ServerMetrics() override;

  void on_tokens(const CallRecord& call, int32_t tokens, double seconds) override;
  void on_end(const CallRecord& call) override;

  // What is read and not counted here. Spans: exported and dropped so far.
  struct Now {
    EngineStatus engine;
    CallCounts calls;
    bool draining = false;
    uint64_t spans_exported = 0, spans_dropped = 0;
  };
  // The Prometheus text format, version 0.0.4.
  std::string text(const Now& now);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// "RESOURCE_EXHAUSTED"
const char* call_code_name(CallCode code);

}  // namespace shoal
