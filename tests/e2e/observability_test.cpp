// A real server on two ranks, seen from outside: metrics, log, traces, `shoal top`.
#include <catch2/catch.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>

#include "tests/e2e/server_process.h"
#include "tests/server/http_get.h"

namespace shoal {
namespace {

using nlohmann::json;

std::string output_of(const std::string& arguments) {
  const std::string command = std::string(SHOAL_EXECUTABLE) + " " + arguments + " 2>&1";
  std::string text;
  std::FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  for (char buffer[4096]; size_t n = std::fread(buffer, 1, sizeof buffer, pipe);)
    text.append(buffer, n);
  REQUIRE(pclose(pipe) == 0);
  return text;
}

// The words behind `before` in a line of the log's message.
std::string behind(const std::string& line, const std::string& before) {
  const size_t at = line.find(before);
  REQUIRE(at != std::string::npos);
  return line.substr(at + before.size(),
                     line.find_first_of(" /\"", at + before.size()) - at - before.size());
}

double value(const std::string& metrics, const std::string& name, const std::string& label = "") {
  std::istringstream lines(metrics);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(name + "{") && line.find(label) != std::string::npos) {
      return std::stod(line.substr(line.rfind(' ') + 1));
    }
  }
  return -1;
}

TEST_CASE("a server of two ranks is seen in metrics, log, traces and top") {
  HttpReceiver collector;
  ShoalProcess server({"serve", demo_model(), "--port", "0", "--metrics-port", "0", "--tp", "2",
                       "--threads-per-rank", "1", "--log-format", "json", "--served-model-name",
                       "demo", "--expert-exchange", "all-to-all", "--otlp-endpoint",
                       "http://127.0.0.1:" + std::to_string(collector.port())});
  const std::string listening = server.wait_line("Metrics on http://", 60);
  const std::string metrics_address = behind(listening, "Metrics on http://");
  REQUIRE(http_get(metrics_address, "/health").status == 200);
  const std::string ready_line = server.wait_line("Ready: demo on ", 120);
  REQUIRE(!ready_line.empty());
  std::string address = behind(ready_line, "Ready: demo on ");
  if (address.ends_with(',')) address.pop_back();
  REQUIRE(!server.wait_line("fired up and ready to roll", 10).empty());
  REQUIRE(http_get(metrics_address, "/ready").status == 200);

  // Work of more than a tenth of a second, so that the ranks report what they did.
  for (int i = 0; i < 3; ++i) {
    output_of("chat --server " + address +
              " --max-tokens 200 --temperature 0 'Tell me about number " + std::to_string(i) + "'");
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
  }
  const std::string line = server.wait_line("\"event\":\"request\"", 10);
  const json entry = json::parse(line);
  REQUIRE(entry.at("status") == "OK");
  REQUIRE(entry.at("completion_tokens").get<int>() > 0);
  REQUIRE(entry.at("request_id").get<std::string>().starts_with("chat-"));
  REQUIRE(entry.count("prompt") == 0);

  std::string metrics;
  for (int i = 0; i < 100; ++i) {
    metrics = http_get(metrics_address, "/metrics").body;
    if (value(metrics, "shoal_rank_steps_total", "rank=\"1\"") > 0) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  INFO(metrics);
  REQUIRE(value(metrics, "vllm:request_success_total", "stop") +
              value(metrics, "vllm:request_success_total", "length") ==
          3);
  REQUIRE(value(metrics, "vllm:generation_tokens_total") > 0);
  REQUIRE(value(metrics, "vllm:request_queue_time_seconds_count") == 3);
  for (const char* rank : {"rank=\"0\"", "rank=\"1\""}) {
    REQUIRE(value(metrics, "shoal_rank_steps_total", rank) > 0);
    REQUIRE(value(metrics, "shoal_rank_step_seconds_total", rank) > 0);
    REQUIRE(value(metrics, "shoal_rank_collective_seconds_total", rank) > 0);
    REQUIRE(value(metrics, "shoal_rank_resident_bytes", rank) > 1e6);
    REQUIRE(value(metrics, "shoal_rank_expert_rows_total", rank) > 0);
    const std::string of_rank(rank);
    for (const char* verb : {"all_to_all", "all_reduce"}) {
      std::istringstream lines(metrics);
      double bytes = -1;
      for (std::string text; std::getline(lines, text);) {
        if (!text.starts_with("shoal_rank_sent_bytes_total{")) continue;
        if (text.find(of_rank) == std::string::npos || text.find(verb) == std::string::npos)
          continue;
        bytes = std::stod(text.substr(text.rfind(' ') + 1));
      }
      INFO(verb);
      REQUIRE(bytes > 0);
    }
  }
  REQUIRE(value(metrics, "shoal_expert_imbalance", "layers") >= 1);
  REQUIRE(value(metrics, "shoal_expert_imbalance", "ranks") >= 1);
  REQUIRE(value(metrics, "shoal_memory_taken_bytes", "weights") > 0);

  const std::string top = output_of("top --once --server " + address);
  INFO(top);
  for (const char* part :
       {"demo at ", "ready", "2 ranks", "ok 3", "busiest/mean", "weights", "KV cache"}) {
    REQUIRE(top.find(part) != std::string::npos);
  }
  REQUIRE(top.find("\n1 ") != std::string::npos);  // a row for each rank

  REQUIRE(collector.wait_for(1));
  server.send(SIGTERM);
  REQUIRE(server.wait_exit(60) == 0);
  std::set<std::string> traces;
  size_t spans = 0;
  for (const HttpReceiver::Post& post : collector.posts()) {
    const json body = json::parse(post.body);
    for (const json& span : body.at("resourceSpans").at(0).at("scopeSpans").at(0).at("spans")) {
      traces.insert(span.at("traceId"));
      ++spans;
    }
  }
  REQUIRE(traces.size() == 3);
  REQUIRE(spans == 12);
  // All that was logged is JSON, the ranks' lines as well.
  std::istringstream lines(server.output());
  for (std::string text; std::getline(lines, text);) {
    INFO(text);
    REQUIRE(json::accept(text));
  }
}

TEST_CASE("collect-env prints JSON for programs") {
  const json all = json::parse(output_of("collect-env --json"));
  REQUIRE(all.at("build").at("version").get<std::string>().size() >= 5);
  REQUIRE(all.at("memory").at("MemTotal").get<std::string>().ends_with("kB"));
}

}  // namespace
}  // namespace shoal
