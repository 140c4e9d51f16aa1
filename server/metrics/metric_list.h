// Every metric that /metrics has: the one list from which they are made, documented and checked
// (docs/observability.md, deploy/grafana, deploy/prometheus). vllm:* are the names that dashboards and
// gateways for vLLM ask for; shoal_* is what they have no name for; process_* are Prometheus's own.
#pragma once

#include <span>
#include <string_view>

namespace shoal {

enum class MetricKind { kCounter, kGauge, kHistogram };

struct MetricInfo {
  const char* name;  // of a histogram without _bucket, _sum, _count
  MetricKind kind;
  const char* labels;  // beside model_name (vllm:* also has engine="0"); "" if none
  const char* help;    // meaning and unit
};

std::span<const MetricInfo> metric_list();
const MetricInfo& metric_info(std::string_view name);  // throws Bug for a name that is not in the list

}  // namespace shoal
