#include <catch2/catch.hpp>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#include "kernels/base/error.h"
#include "server/metrics/http_endpoint.h"
#include "server/metrics/metric_list.h"
#include "server/metrics/recent_calls.h"
#include "server/metrics/server_metrics.h"
#include "tests/server/call_records.h"
#include "tests/server/http_get.h"

namespace shoal {
namespace {

MetricsOptions options() {
  return {.model_name = "test/model", .version = "1.2.3", .context_tokens = 4096, .page_size = 16};
}

// Something of everything.
ServerMetrics::Now everything() {
  ServerMetrics::Now now;
  EngineStatus& e = now.engine;
  e.state = EngineState::kReady;
  e.kv_tokens = 1600;
  e.running = 3;
  e.waiting = 2;
  e.pages_total = 100;
  e.pages_used = 25;
  e.prefix_queries = 40;
  e.prefix_hits = 10;
  e.steps = 7;
  e.prompt_tokens = 30;
  e.generated_tokens = 50;
  e.bytes_read = 5;
  e.bytes_total = 10;
  e.memory = {{{"weights", 1000, 900}}, {{"weights", 800, 800}}};
  e.rank_stats.resize(2);
  e.rank_stats[1].steps = 7;
  e.rank_stats[1].step_seconds = 1.5;
  e.rank_stats[1].bytes_sent[static_cast<int>(Traffic::kAllToAll)] = 4096;
  e.experts = {.mean_imbalance = 1.5,
               .worst_imbalance = 3,
               .worst_layer = 2,
               .rank_imbalance = 1.25,
               .idle_experts = 4};
  e.offload.experts_on_host = 5;
  e.step_tokens.add(kStepTokenBounds, 300);
  e.step_seconds.add(kStepSecondsBounds, 0.02);
  now.calls.open = 2;
  now.calls.ok = 5;
  now.calls.accepted = 7;
  now.spans_exported = 8;
  now.spans_dropped = 1;
  return now;
}

std::string name_of_line(const std::string& line) {
  return line.substr(0, line.find_first_of("{ "));
}

// The value of the series that has this name and all of these labels.
double value(const std::string& text, const std::string& name,
             const std::vector<std::string>& labels = {}) {
  std::istringstream lines(text);
  double found = -1;
  int count = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line[0] == '#' || name_of_line(line) != name) continue;
    bool all = true;
    for (const std::string& label : labels) all = all && line.find(label) != std::string::npos;
    if (!all) continue;
    found = std::stod(line.substr(line.rfind(' ') + 1));
    ++count;
  }
  INFO(name);
  REQUIRE(count == 1);
  return found;
}

std::vector<double> bounds(const std::string& text, const std::string& name) {
  std::vector<double> result;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t le = line.find("le=\"");
    if (name_of_line(line) != name + "_bucket" || le == std::string::npos) continue;
    const std::string bound = line.substr(le + 4);
    if (!bound.starts_with("+Inf")) result.push_back(std::stod(bound));
  }
  return result;
}

CallRecord of_client(CallRecord call) {
  auto client = std::make_shared<Client>();
  client->name = "alice";
  call.context.client = client;
  return call;
}

std::string full_text() {
  ServerMetrics metrics(options());
  metrics.on_end(of_client(finished_call()));
  metrics.on_end(refused_call());
  metrics.on_tokens(finished_call(), 1, 0.03);
  return metrics.text(everything());
}

TEST_CASE("/metrics has every metric of the list, and no other") {
  const std::string text = full_text();
  std::map<std::string, std::string> kinds;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, type, name, kind;
    words >> hash >> type >> name >> kind;
    if (hash == "#" && type == "TYPE") {
      REQUIRE(kinds.count(name) == 0);
      kinds[name] = kind;
    }
  }
  for (const MetricInfo& metric : metric_list()) {
    INFO(metric.name);
    REQUIRE(kinds.count(metric.name) == 1);
    const char* kind = metric.kind == MetricKind::kCounter ? "counter"
                       : metric.kind == MetricKind::kGauge ? "gauge"
                                                           : "histogram";
    REQUIRE(kinds[metric.name] == kind);
    kinds.erase(metric.name);
  }
  REQUIRE(kinds.empty());
  // Dashboards select by these.
  REQUIRE(text.find("vllm:num_requests_running{engine=\"0\",model_name=\"test/model\"} 3") !=
          std::string::npos);
}

TEST_CASE("histograms have vLLM's buckets") {
  const std::string text = full_text();
  REQUIRE(bounds(text, "vllm:time_to_first_token_seconds") ==
          std::vector<double>{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                              1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560});
  const std::vector<double> token = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                     .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
  for (const char* name : {"inter_token_latency_seconds", "time_per_output_token_seconds",
                           "request_time_per_output_token_seconds"}) {
    REQUIRE(bounds(text, std::string("vllm:") + name) == token);
  }
  const std::vector<double> request = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                       30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
  for (const char* name : {"e2e_request_latency", "request_queue_time", "request_inference_time",
                           "request_prefill_time", "request_decode_time"}) {
    REQUIRE(bounds(text, fmt::format("vllm:{}_seconds", name)) == request);
  }
  REQUIRE(bounds(text, "vllm:request_prompt_tokens") ==
          std::vector<double>{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000});
}

TEST_CASE("a call is in the histograms with its times") {
  const std::string text = full_text();
  const auto sum = [&](const std::string& name) { return value(text, "vllm:" + name + "_sum"); };
  REQUIRE(sum("time_to_first_token_seconds") == Approx(1.0));
  REQUIRE(sum("request_queue_time_seconds") == Approx(0.4));
  REQUIRE(sum("request_prefill_time_seconds") == Approx(0.5));
  REQUIRE(sum("request_decode_time_seconds") == Approx(0.9));
  REQUIRE(sum("request_inference_time_seconds") == Approx(1.4));
  REQUIRE(sum("e2e_request_latency_seconds") == Approx(2.0));
  REQUIRE(sum("request_time_per_output_token_seconds") == Approx(0.1));
  REQUIRE(sum("request_prompt_tokens") == 12);
  REQUIRE(sum("inter_token_latency_seconds") == Approx(0.03));
  REQUIRE(sum("time_per_output_token_seconds") == Approx(0.03));
  REQUIRE(value(text, "vllm:request_success_total", {"stop"}) == 1);
  REQUIRE(value(text, "vllm:request_success_total", {"abort"}) == 0);
  REQUIRE(value(text, "shoal_calls_ended_total", {"code=\"OK\"", "method=\"Chat\""}) == 1);
  REQUIRE(value(text, "shoal_calls_refused_total",
                {"RESOURCE_EXHAUSTED", "Complete", "queue_full"}) == 1);
  REQUIRE(value(text, "shoal_calls_accepted_total") == 7);
  REQUIRE(value(text, "shoal_client_tokens_total", {"alice", "generated"}) == 10);
  REQUIRE(value(text, "vllm:kv_cache_usage_perc") == 0.25);
  REQUIRE(value(text, "vllm:iteration_tokens_total_bucket", {"le=\"512\""}) == 1);
  REQUIRE(value(text, "vllm:iteration_tokens_total_bucket", {"le=\"256\""}) == 0);
  REQUIRE(value(text, "shoal_rank_sent_bytes_total", {"rank=\"1\"", "all_to_all"}) == 4096);
  REQUIRE(value(text, "shoal_memory_taken_bytes", {"rank=\"0\""}) == 900);
  REQUIRE(value(text, "shoal_expert_imbalance", {"worst_layer"}) == 3);
  REQUIRE(value(text, "process_resident_memory_bytes") > 1e6);
  REQUIRE(value(text, "process_open_fds") >= 3);
}

TEST_CASE("counters go on when the ranks start to count anew") {
  ServerMetrics metrics(options());
  ServerMetrics::Now now = everything();
  metrics.text(now);
  now.engine.rank_stats[1].steps = 2;  // started again, and two steps since
  now.engine.step_seconds = {};
  now.engine.step_seconds.add(kStepSecondsBounds, 0.01);
  const std::string text = metrics.text(now);
  REQUIRE(value(text, "shoal_rank_steps_total", {"rank=\"1\""}) == 9);
  REQUIRE(value(text, "shoal_step_seconds_count") == 2);
  REQUIRE(value(metrics.text(now), "shoal_rank_steps_total", {"rank=\"1\""}) == 9);
}

TEST_CASE("a sample that did not finish counts as aborted") {
  ServerMetrics metrics(options());
  CallRecord call = finished_call();
  call.n = 3;
  call.status = {CallCode::kCancelled, "the client cancelled the call"};
  metrics.on_end(call);
  const std::string text = metrics.text(everything());
  REQUIRE(value(text, "vllm:request_success_total", {"abort"}) == 2);
  REQUIRE(value(text, "vllm:request_success_total", {"stop"}) == 1);
}

TEST_CASE("tokens and scrapes of many threads are all counted") {
  ServerMetrics metrics(options());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) metrics.on_tokens(finished_call(), 1, 0.01);
      for (int i = 0; i < 50; ++i) metrics.on_end(finished_call());
    });
  }
  for (int i = 0; i < 20; ++i) metrics.text(everything());
  for (std::thread& thread : threads) thread.join();
  const std::string text = metrics.text(everything());
  REQUIRE(value(text, "vllm:inter_token_latency_seconds_count") == 4000);
  REQUIRE(value(text, "shoal_calls_ended_total") == 200);
}

TEST_CASE("the endpoint answers scrapes and probes, and nothing else") {
  std::atomic<bool> ready{false};
  HttpEndpoint endpoint("127.0.0.1", 0,
                        {.metrics = [] { return std::string("a 1\n"); },
                         .ready =
                             [&](std::string* why) {
                               if (!ready) *why = "loading 40 %";
                               return ready.load();
                             }});
  const HttpAnswer metrics = http_get(endpoint.address(), "/metrics");
  REQUIRE(metrics.status == 200);
  REQUIRE(metrics.body == "a 1\n");
  REQUIRE(metrics.content_type == "text/plain; version=0.0.4; charset=utf-8");
  REQUIRE(http_get(endpoint.address(), "/health").status == 200);
  REQUIRE(http_get(endpoint.address(), "/ready").status == 503);
  REQUIRE(http_get(endpoint.address(), "/ready").body == "loading 40 %\n");
  ready = true;
  REQUIRE(http_get(endpoint.address(), "/ready").status == 200);
  REQUIRE(http_get(endpoint.address(), "/").status == 404);
  REQUIRE(http_get(endpoint.address(), "/../etc/passwd").status == 404);
  REQUIRE(http_post(endpoint.address(), "/metrics", "x") / 100 == 4);

  const int port = std::stoi(endpoint.address().substr(endpoint.address().find(':') + 1));
  REQUIRE_THROWS_AS(HttpEndpoint("127.0.0.1", port, {}), InvalidInput);
}

TEST_CASE("quantiles are of the calls that have ended") {
  RecentCalls recent;
  REQUIRE(recent.quantiles().ttft_p50 == 0);
  for (int i = 1; i <= 100; ++i) {
    CallRecord call = finished_call();
    call.first_token = after(call.arrived, i * 0.01);
    call.last_token = after(*call.first_token, 0.9);
    recent.on_end(call);
  }
  recent.on_end(refused_call());
  REQUIRE(recent.quantiles().ttft_p50 == Approx(0.51).margin(0.011));
  REQUIRE(recent.quantiles().ttft_p90 == Approx(0.90).margin(0.011));
  REQUIRE(recent.quantiles().tpot_p50 == Approx(0.1));
}

std::string file_text(const std::string& path) {
  std::ifstream file(std::string(SHOAL_SOURCE_DIR "/") + path);
  REQUIRE(file);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Names of ours in PromQL, without the suffixes of histograms.
std::set<std::string> names_in(const std::string& promql) {
  static const std::regex name("(vllm:|shoal_|process_)[a-z0-9_]+");
  std::set<std::string> names;
  for (std::sregex_iterator it(promql.begin(), promql.end(), name), end; it != end; ++it) {
    std::string found = it->str();
    for (const MetricInfo& metric : metric_list()) {
      if (metric.kind != MetricKind::kHistogram) continue;
      for (const char* suffix : {"_bucket", "_sum", "_count"}) {
        if (found == std::string(metric.name) + suffix) found = metric.name;
      }
    }
    names.insert(found);
  }
  return names;
}

void require_exported(const std::set<std::string>& names) {
  for (const std::string& name : names) {
    INFO(name);
    REQUIRE_NOTHROW(metric_info(name));
  }
}

TEST_CASE("what the alert rules ask for is exported") {
  const std::string rules = file_text("deploy/prometheus/alerts.yml");
  const std::set<std::string> names = names_in(rules);
  REQUIRE(names.size() > 10);
  require_exported(names);
}

TEST_CASE("what the dashboard asks for is exported, and all metrics are shown") {
  const nlohmann::json dashboard =
      nlohmann::json::parse(file_text("deploy/grafana/dashboards/shoal.json"));
  std::set<std::string> shown;
  std::set<int> ids;
  for (const auto& panel : dashboard.at("panels")) {
    REQUIRE(ids.insert(panel.at("id").get<int>()).second);
    const auto& place = panel.at("gridPos");
    REQUIRE(place.at("x").get<int>() + place.at("w").get<int>() <= 24);
    if (panel.at("type") == "row") continue;
    REQUIRE(!panel.at("targets").empty());
    for (const auto& target : panel.at("targets"))
      shown.merge(names_in(target.at("expr").get<std::string>()));
  }
  for (const auto& variable : dashboard.at("templating").at("list")) {
    if (variable.at("type") == "query")
      shown.merge(names_in(variable.at("definition").get<std::string>()));
  }
  require_exported(shown);
  // Former names, labels that say it all, and what only alerts use.
  const std::set<std::string> elsewhere = {"vllm:gpu_cache_usage_perc",
                                           "vllm:time_per_output_token_seconds",
                                           "vllm:cache_config_info",
                                           "shoal_build_info",
                                           "vllm:request_inference_time_seconds",
                                           "vllm:request_params_n",
                                           "vllm:request_params_max_tokens",
                                           "shoal_load_ratio",
                                           "shoal_load_seconds",
                                           "shoal_engine_steps_total",
                                           "process_virtual_memory_bytes",
                                           "process_max_fds",
                                           "process_start_time_seconds"};
  for (const MetricInfo& metric : metric_list()) {
    INFO(metric.name);
    REQUIRE(shown.count(metric.name) + elsewhere.count(metric.name) >= 1);
  }
}

TEST_CASE("docs/observability.md has every metric, as the list says it") {
  const std::string docs = file_text("docs/observability.md");
  for (const MetricInfo& metric : metric_list()) {
    const char* kind = metric.kind == MetricKind::kCounter ? "counter"
                       : metric.kind == MetricKind::kGauge ? "gauge"
                                                           : "histogram";
    const std::string row =
        fmt::format("| `{}` | {} | {} | {} |", metric.name, kind, metric.labels, metric.help);
    INFO(row);
    REQUIRE(docs.find(row) != std::string::npos);
  }
}

}  // namespace
}  // namespace shoal
