#include "tests/bench/report.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <fstream>

namespace shoal::bench {

Report::Report(const Meter& meter, std::string only)
    : device_(meter.name()),
      bandwidth_(meter.bandwidth()),
      math_rate_(meter.math_rate()),
      only_(std::move(only)) {
  fmt::print("{}\nlimits, measured: memory {:.1f} GB/s, arithmetic {:.2f} TFLOP/s\n\n", device_,
             bandwidth_ / 1e9, math_rate_ / 1e12);
  fmt::print("{:<14} {:<44} {:<12} {:>10} {:>8} {:>9} {:>9} {:>9}  {}\n", "verb", "shape",
             "weights", "us", "GB/s", "TFLOP/s", "of memory", "of arith.", "limit");
}

bool Report::wanted(const std::string& verb, const std::string& shape,
                    const std::string& dtype) const {
  return only_.empty() ||
         fmt::format("{} {} {}", verb, shape, dtype).find(only_) != std::string::npos;
}

void Report::add(const Row& row) {
  SHOAL_CHECK(std::isfinite(row.seconds) && row.seconds > 0 && std::isfinite(row.bytes) &&
                  row.bytes > 0 && std::isfinite(row.flops) && row.flops >= 0,
              "{} {} {}: {} s, {} bytes, {} FLOPs", row.verb, row.shape, row.dtype, row.seconds,
              row.bytes, row.flops);
  const double memory = row.bytes / bandwidth_ / row.seconds;
  const double math = row.flops / math_rate_ / row.seconds;
  fmt::print("{:<14} {:<44} {:<12} {:>10.1f} {:>8.1f} {:>9.3f} {:>7.0f} % {:>7.0f} %  {}\n",
             row.verb, row.shape, row.dtype, row.seconds * 1e6, row.bytes / row.seconds / 1e9,
             row.flops / row.seconds / 1e12, 100 * memory, 100 * math,
             memory > math ? "memory" : "arithmetic");
  std::fflush(stdout);
  rows_.push_back(row);
}

nlohmann::json Report::json() const {
  nlohmann::json rows = nlohmann::json::array();
  for (const Row& row : rows_) {
    rows.push_back({{"verb", row.verb},
                    {"shape", row.shape},
                    {"dtype", row.dtype},
                    {"seconds", row.seconds},
                    {"bytes", row.bytes},
                    {"flops", row.flops},
                    {"limit_seconds", std::max(row.bytes / bandwidth_, row.flops / math_rate_)}});
  }
  return {{"device", device_},
          {"bytes_per_second", bandwidth_},
          {"flops_per_second", math_rate_},
          {"rows", rows}};
}

void write_json(const std::string& path, const nlohmann::json& json) {
  std::ofstream file(path);
  file << json.dump(2) << "\n";
  if (!file.flush()) throw_invalid("--json {}: cannot be written", path);
}

}  // namespace shoal::bench
