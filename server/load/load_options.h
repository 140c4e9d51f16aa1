// What `shoal bench serve` is asked to do, and what every part of the load generator reads of it.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "server/client_channel.h"

namespace shoal {

struct BenchServeOptions {
  ServerAddress address;
  int connections = 1;            // --connections: HTTP/2 connections that calls take turns on
  std::string backend = "shoal";  // --backend shoal (Complete, token ids) | shoal-chat (Chat, text)

  // What is asked.
  std::string dataset = "random";  // --dataset-name random | lognormal | sharegpt | trace
  std::string dataset_path;        // --dataset-path: of sharegpt and trace
  int32_t input_len = 1024;        // --random-input-len
  int32_t output_len = 128;        // --random-output-len
  double range_ratio = 0;          // --random-range-ratio: lengths uniform in len * [1 - r, 1 + r]
  double sigma = 1;          // --lognormal-sigma: of the logarithm; the lengths above are the means
  int32_t prefix_len = 0;    // --random-prefix-len: before the input, shared by a group
  int32_t num_prefixes = 1;  // --random-num-prefixes: groups
  int turns = 1;             // --num-turns of a conversation, each with all before it
  double turn_delay = 0;     // --turn-delay: seconds between an answer and the next question
  bool ignore_eos = false;   // --ignore-eos
  double temperature = 0;    // --temperature
  uint64_t seed = 0;         // --seed

  // When.
  int64_t num_prompts = 0;  // --num-prompts: requests; 0: 1000, or without end under --duration
  double duration = 0;      // --duration: seconds in which requests are sent; 0: no limit
  double request_rate = std::numeric_limits<double>::infinity();  // --request-rate
  double burstiness = 1;  // --burstiness: shape of the gamma distribution between requests
  std::string arrival = "poisson";    // --arrival poisson | constant | burst
  int burst_size = 16;                // --burst-size: requests at once, for --arrival burst
  double trace_speedup = 1;           // --trace-speedup: the trace's clock runs so much faster
  int max_concurrency = 0;            // --max-concurrency; 0: no limit
  int num_warmups = 0;                // --num-warmups
  std::vector<double> request_rates;  // --request-rates: a run for each
  std::vector<int> concurrencies;     // --concurrencies: a run for each

  // What goes wrong on purpose.
  double cancel_fraction = 0;  // --cancel-fraction of the requests, each after some of its tokens
  std::string deadline_ms;     // --deadline-ms 500, or 50:5000 for anything between

  // What is said.
  std::string percentile_metrics = "ttft,tpot,itl,e2el";  // --percentile-metrics
  std::string metric_percentiles = "90,99";               // --metric-percentiles
  std::vector<std::string> goodput;                       // --goodput ttft:200 tpot:50 e2el:5000
  bool save_result = false;                               // --save-result
  bool save_detailed = false;  // --save-detailed: with every request's own figures
  std::string result_dir, result_filename, label;  // --result-dir, --result-filename, --label
};

}  // namespace shoal
