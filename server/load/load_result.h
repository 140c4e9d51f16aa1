// LoadResult: the figures of a run, and how they are shown: the table and the JSON that users'
// scripts parse (names and definitions as vLLM's `bench serve` has them; docs/load_testing.md says
// what each means).
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "server/load/load_run.h"

namespace shoal {

// Of one kind of latency, in milliseconds. All 0 without values.
struct LatencyFigures {
  double mean = 0, median = 0, deviation = 0;
  std::vector<std::pair<double, double>> percentiles;  // (90, value)
};
// Linear between neighbours, as NumPy's default. `seconds` is sorted by it.
LatencyFigures latency_figures(std::vector<double> seconds, const std::vector<double>& percentiles);

struct LoadResult {
  int64_t completed = 0, cancelled = 0,
          failed = 0;  // failed: neither answered nor cancelled on purpose
  int64_t input_tokens = 0, output_tokens = 0, cached_tokens = 0;  // of those completed
  double duration = 0;
  double request_throughput = 0, request_goodput = 0, output_throughput = 0, total_throughput = 0;
  double peak_output_throughput = 0;
  int32_t peak_concurrency = 0;
  double tokens_per_message = 0;
  std::vector<std::pair<std::string, LatencyFigures>>
      latencies;       // "ttft", ... as --percentile-metrics
  LatencyFigures lag;  // of sending
  double client_cpu_us_per_token = 0;
  std::map<std::string, int64_t> statuses;
  std::string first_error;  // of a failed request, with its status
};

// What --percentile-metrics, --metric-percentiles and --goodput say. Throw InvalidInput.
struct ReportOptions {
  std::vector<std::string> metrics;
  std::vector<double> percentiles;
  std::map<std::string, double> goodput;  // "ttft": seconds
};
ReportOptions report_options(const BenchServeOptions& options);

LoadResult make_result(const LoadRecord& record, const ReportOptions& report);
std::string result_table(const LoadResult& result, const BenchServeOptions& options);
nlohmann::ordered_json result_json(const LoadResult& result, const LoadRecord& record,
                                   const BenchServeOptions& options, const LoadServer& server);
// "shoal-4qps-concurrency8-MODEL-20260101-120000.json" in --result-dir, or --result-filename.
// one_of_many: a name of the user's gets the rate and concurrency before its ending.
std::string result_path(const BenchServeOptions& options, const std::string& model,
                        bool one_of_many);

}  // namespace shoal
