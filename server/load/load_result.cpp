#include "server/load/load_result.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "kernels/base/error.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

struct Metric {
  const char *name, *short_name, *title;
};
constexpr Metric kMetrics[] = {
    {"ttft", "TTFT", "Time to First Token"},
    {"tpot", "TPOT", "Time per Output Token (excl. 1st token)"},
    {"itl", "ITL", "Inter-token Latency"},
    {"e2el", "E2EL", "End-to-end Latency"},
};

const Metric& metric_of(const std::string& flag, const std::string& name) {
  for (const Metric& metric : kMetrics) {
    if (name == metric.name) return metric;
  }
  throw_invalid("{} {}: use ttft, tpot, itl or e2el", flag, name);
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

double parse_positive(const std::string& flag, const std::string& whole, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value > 0) || !std::isfinite(value)) {
    throw_invalid("{} {}: \"{}\" is not a number above 0", flag, whole, text);
  }
  return value;
}

// Of one request, in seconds. An answer of one token has no time per output token: 0, which meets
// any limit.
double tpot_of(const LoadAnswer& a) {
  return a.output_tokens > 1 ? (a.latency - a.ttft) / (a.output_tokens - 1) : 0;
}

bool is_good(const LoadAnswer& a, const std::map<std::string, double>& goodput) {
  for (const auto& [name, limit] : goodput) {
    const double value = name == "ttft" ? a.ttft : name == "tpot" ? tpot_of(a) : a.latency;
    if (value > limit) return false;
  }
  return true;
}

// 90 as "90", 99.9 as "99.9".
std::string percentile_name(double percentile) { return fmt::format("{:g}", percentile); }

std::string line(const std::string& label, double value) {
  return fmt::format("{:<40} {:<10.2f}\n", label, value);
}
std::string line(const std::string& label, int64_t value) {
  return fmt::format("{:<40} {:<10}\n", label, value);
}

void add_figures(const std::string& name, const LatencyFigures& figures, Json* json) {
  (*json)["mean_" + name + "_ms"] = figures.mean;
  (*json)["median_" + name + "_ms"] = figures.median;
  (*json)["std_" + name + "_ms"] = figures.deviation;
  for (const auto& [percentile, value] : figures.percentiles) {
    (*json)["p" + percentile_name(percentile) + "_" + name + "_ms"] = value;
  }
}

Json rate_json(double rate) { return std::isinf(rate) ? Json("inf") : Json(rate); }

void add_details(const LoadRecord& record, Json* json) {
  for (const LoadOutcome& outcome : record.outcomes) {
    const LoadAnswer& a = outcome.answer;
    (*json)["input_lens"].push_back(a.prompt_tokens);
    (*json)["output_lens"].push_back(a.output_tokens);
    (*json)["ttfts"].push_back(std::max(a.ttft, 0.0));
    (*json)["itls"].push_back(a.itl);
    (*json)["latencies"].push_back(a.latency);
    (*json)["start_times"].push_back(outcome.start);
    (*json)["queue_times"].push_back(outcome.queued);
    (*json)["errors"].push_back(a.code == 0 ? "" : status_name(a.code) + ": " + a.error);
  }
}

}  // namespace

LatencyFigures latency_figures(std::vector<double> seconds,
                               const std::vector<double>& percentiles) {
  LatencyFigures figures;
  std::sort(seconds.begin(), seconds.end());
  const auto at = [&](double percentile) {
    if (seconds.empty()) return 0.0;
    const double place = percentile / 100 * static_cast<double>(seconds.size() - 1);
    const auto below = static_cast<size_t>(place);
    const size_t above = std::min(below + 1, seconds.size() - 1);
    return 1000 * (seconds[below] +
                   (seconds[above] - seconds[below]) * (place - static_cast<double>(below)));
  };
  for (const double value : seconds) figures.mean += value;
  if (!seconds.empty()) figures.mean /= static_cast<double>(seconds.size());
  double squares = 0;
  for (const double value : seconds) squares += (value - figures.mean) * (value - figures.mean);
  if (!seconds.empty())
    figures.deviation = 1000 * std::sqrt(squares / static_cast<double>(seconds.size()));
  figures.mean *= 1000;
  figures.median = at(50);
  for (const double percentile : percentiles)
    figures.percentiles.emplace_back(percentile, at(percentile));
  return figures;
}

ReportOptions report_options(const BenchServeOptions& o) {
  ReportOptions report;
  for (const std::string& name : split(o.percentile_metrics)) {
    report.metrics.emplace_back(metric_of("--percentile-metrics", name).name);
  }
  for (const std::string& text : split(o.metric_percentiles)) {
    const double value = parse_positive("--metric-percentiles", o.metric_percentiles, text);
    if (value > 100)
      throw_invalid("--metric-percentiles {}: {} is above 100", o.metric_percentiles, text);
    report.percentiles.push_back(value);
  }
  for (const std::string& pair : o.goodput) {
    const size_t colon = pair.find(':');
    const std::string name = pair.substr(0, colon);
    if (colon == std::string::npos || (name != "ttft" && name != "tpot" && name != "e2el")) {
      throw_invalid("--goodput {}: use ttft:MS, tpot:MS or e2el:MS", pair);
    }
    report.goodput[name] = parse_positive("--goodput", pair, pair.substr(colon + 1)) / 1000;
  }
  return report;
}

LoadResult make_result(const LoadRecord& record, const ReportOptions& report) {
  LoadResult r;
  std::vector<double> ttft, tpot, itl, e2el, lag;
  int64_t good = 0, all_tokens = 0, messages = 0;
  for (const LoadOutcome& outcome : record.outcomes) {
    const LoadAnswer& a = outcome.answer;
    ++r.statuses[status_name(a.code)];
    all_tokens += a.output_tokens;
    lag.push_back(outcome.lag);
    if (a.code != 0) {
      ++(a.cancelled ? r.cancelled : r.failed);
      if (!a.cancelled && r.first_error.empty())
        r.first_error = status_name(a.code) + ": " + a.error;
      continue;
    }
    ++r.completed;
    r.input_tokens += a.prompt_tokens;
    r.cached_tokens += a.cached_tokens;
    r.output_tokens += a.output_tokens;
    messages += static_cast<int64_t>(a.itl.size()) + 1;
    ttft.push_back(std::max(a.ttft, 0.0));
    if (a.output_tokens > 1) tpot.push_back(tpot_of(a));
    itl.insert(itl.end(), a.itl.begin(), a.itl.end());
    e2el.push_back(a.latency);
    if (is_good(a, report.goodput)) ++good;
  }
  r.duration = record.duration;
  const double seconds = std::max(record.duration, 1e-9);
  r.request_throughput = static_cast<double>(r.completed) / seconds;
  r.request_goodput = static_cast<double>(good) / seconds;
  r.output_throughput = static_cast<double>(r.output_tokens) / seconds;
  r.total_throughput = static_cast<double>(r.input_tokens + r.output_tokens) / seconds;
  for (const LoadSecond& second : record.seconds) {
    r.peak_output_throughput =
        std::max(r.peak_output_throughput, static_cast<double>(second.tokens));
  }
  r.peak_concurrency = record.peak_concurrency;
  if (messages > 0)
    r.tokens_per_message = static_cast<double>(r.output_tokens) / static_cast<double>(messages);
  if (all_tokens > 0)
    r.client_cpu_us_per_token = record.cpu_seconds * 1e6 / static_cast<double>(all_tokens);
  const std::map<std::string, std::vector<double>*> values = {
      {"ttft", &ttft}, {"tpot", &tpot}, {"itl", &itl}, {"e2el", &e2el}};
  for (const std::string& name : report.metrics) {
    r.latencies.emplace_back(name, latency_figures(*values.at(name), report.percentiles));
  }
  r.lag = latency_figures(lag, report.percentiles);
  return r;
}

std::string result_table(const LoadResult& r, const BenchServeOptions& o) {
  std::string table = fmt::format("{:=^50}\n", " Serving Benchmark Result ");
  table += line("Successful requests:", r.completed);
  table += line("Failed requests:", r.failed);
  if (r.cancelled > 0) table += line("Cancelled requests:", r.cancelled);
  if (o.max_concurrency > 0)
    table += line("Maximum request concurrency:", int64_t{o.max_concurrency});
  if (!std::isinf(o.request_rate)) table += line("Request rate configured (RPS):", o.request_rate);
  table += line("Benchmark duration (s):", r.duration);
  table += line("Total input tokens:", r.input_tokens);
  table += line("Total generated tokens:", r.output_tokens);
  table += line("Request throughput (req/s):", r.request_throughput);
  if (!o.goodput.empty()) table += line("Request goodput (req/s):", r.request_goodput);
  table += line("Output token throughput (tok/s):", r.output_throughput);
  table += line("Peak output token throughput (tok/s):", r.peak_output_throughput);
  table += line("Peak concurrent requests:", static_cast<double>(r.peak_concurrency));
  table += line("Total token throughput (tok/s):", r.total_throughput);
  for (const auto& [name, figures] : r.latencies) {
    const Metric& metric = metric_of("", name);
    table += fmt::format("{:-^50}\n", metric.title);
    table += line(fmt::format("Mean {} (ms):", metric.short_name), figures.mean);
    table += line(fmt::format("Median {} (ms):", metric.short_name), figures.median);
    for (const auto& [percentile, value] : figures.percentiles) {
      table +=
          line(fmt::format("P{} {} (ms):", percentile_name(percentile), metric.short_name), value);
    }
  }
  return table + std::string(50, '=') + "\n";
}

Json result_json(const LoadResult& r, const LoadRecord& record, const BenchServeOptions& o,
                 const LoadServer& server) {
  Json json;
  json["date"] = fmt::format("{:%Y%m%d-%H%M%S}", fmt::localtime(std::time(nullptr)));
  json["client"] = "shoal bench serve";
  json["backend"] = o.backend;
  json["label"] = o.label;
  json["model_id"] = server.model;
  json["dataset_name"] = o.dataset;
  json["num_prompts"] = record.outcomes.size();
  json["request_rate"] = rate_json(o.request_rate);
  json["burstiness"] = o.burstiness;
  json["max_concurrency"] = o.max_concurrency > 0 ? Json(o.max_concurrency) : Json(nullptr);
  json["interrupted"] = record.interrupted;
  json["duration"] = r.duration;
  json["completed"] = r.completed;
  json["failed"] = r.failed;
  json["cancelled"] = r.cancelled;
  json["total_input_tokens"] = r.input_tokens;
  json["total_output_tokens"] = r.output_tokens;
  json["total_cached_tokens"] = r.cached_tokens;
  json["request_throughput"] = r.request_throughput;
  json["request_goodput"] = o.goodput.empty() ? Json(nullptr) : Json(r.request_goodput);
  json["output_throughput"] = r.output_throughput;
  json["total_token_throughput"] = r.total_throughput;
  json["max_output_tokens_per_s"] = r.peak_output_throughput;
  json["max_concurrent_requests"] = r.peak_concurrency;
  json["tokens_per_message"] = r.tokens_per_message;
  for (const auto& [name, figures] : r.latencies) add_figures(name, figures, &json);
  add_figures("send_lag", r.lag, &json);
  json["client_cpu_us_per_token"] = r.client_cpu_us_per_token;
  json["status_counts"] = r.statuses;
  json["first_error"] = r.first_error;
  Json series = Json::array();
  for (size_t i = 0; i < record.seconds.size(); ++i) {
    const LoadSecond& s = record.seconds[i];
    series.push_back({{"second", i},
                      {"sent", s.sent},
                      {"completed", s.completed},
                      {"failed", s.failed},
                      {"output_tokens", s.tokens},
                      {"concurrency", s.concurrency}});
  }
  json["series"] = std::move(series);
  if (o.save_detailed) add_details(record, &json);
  return json;
}

std::string result_path(const BenchServeOptions& o, const std::string& model, bool one_of_many) {
  std::string point =
      std::isinf(o.request_rate) ? "infqps" : fmt::format("{:g}qps", o.request_rate);
  if (o.max_concurrency > 0) point += fmt::format("-concurrency{}", o.max_concurrency);
  std::filesystem::path name;
  if (o.result_filename.empty()) {
    const std::string base = model.substr(model.find_last_of('/') + 1);
    name = fmt::format("{}-{}-{}-{:%Y%m%d-%H%M%S}.json", o.label.empty() ? o.backend : o.label,
                       point, base, fmt::localtime(std::time(nullptr)));
  } else {
    name = o.result_filename;
    if (one_of_many)
      name.replace_filename(name.stem().string() + "-" + point + name.extension().string());
  }
  return (std::filesystem::path(o.result_dir) / name).string();
}

}  // namespace shoal
