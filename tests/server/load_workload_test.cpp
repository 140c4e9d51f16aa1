// What the load generator asks, when, and what it makes of the answers: without a server.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "kernels/base/error.h"
#include "server/load/load_result.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;

Workload::Model model(int32_t context = 4096) {
  return {1000, context, {1, 2}, [](const std::string& text) {
            return std::vector<int32_t>(text.size(), 7);
          }};
}

std::vector<LoadSession> all_of(Workload& workload) {
  std::vector<LoadSession> sessions;
  while (auto session = workload.next()) sessions.push_back(std::move(*session));
  return sessions;
}

struct TextFile {
  explicit TextFile(const std::string& text) {
    path = (std::filesystem::temp_directory_path() / "load-test-XXXXXX").string();
    close(mkstemp(path.data()));
    std::ofstream(path) << text;
  }
  ~TextFile() { std::filesystem::remove(path); }
  std::string path;
};

TEST_CASE("arrivals have the rate and the spread that is asked for", "[load]") {
  const auto [arrival, burstiness, spread] =
      GENERATE(table<std::string, double, double>({{"poisson", 1.0, 1.0},
                                                   {"poisson", 0.25, 2.0},
                                                   {"poisson", 4.0, 0.5},
                                                   {"constant", 1.0, 0.0}}));
  CAPTURE(arrival, burstiness);
  BenchServeOptions o;
  o.request_rate = 50;
  o.arrival = arrival;
  o.burstiness = burstiness;
  Arrivals arrivals(o);
  constexpr int kCount = 20000;
  double last = arrivals.next(), sum = 0, squares = 0;
  CHECK(last == 0);
  for (int i = 0; i < kCount; ++i) {
    const double now = arrivals.next(), gap = now - last;
    REQUIRE(gap >= 0);
    sum += gap;
    squares += gap * gap;
    last = now;
  }
  const double mean = sum / kCount;
  CHECK(mean == Approx(1.0 / 50).epsilon(0.05));
  // The coefficient of variation of a gamma distribution is 1 / sqrt(shape).
  CHECK(std::sqrt(std::max(squares / kCount - mean * mean, 0.0)) / mean ==
        Approx(spread).margin(0.08));
}

TEST_CASE("bursts come together, and an infinite rate at once", "[load]") {
  BenchServeOptions o;
  o.arrival = "burst";
  o.burst_size = 4;
  o.request_rate = 8;
  Arrivals bursts(o);
  for (int i = 0; i < 12; ++i) CHECK(bursts.next() == Approx(0.5 * (i / 4)));
  Arrivals at_once(BenchServeOptions{});
  for (int i = 0; i < 5; ++i) CHECK(at_once.next() == 0);
}

TEST_CASE("lengths, prefixes and turns are as asked, and the seed repeats them", "[load]") {
  BenchServeOptions o;
  o.num_prompts = 90;
  o.input_len = 100;
  o.output_len = 20;
  o.range_ratio = 0.5;
  o.prefix_len = 8;
  o.num_prefixes = 3;
  o.turns = 2;
  Workload workload(o, model());
  const std::vector<LoadSession> sessions = all_of(workload);
  REQUIRE(sessions.size() == 45);
  double sum = 0;
  for (size_t i = 0; i < sessions.size(); ++i) {
    const auto& turns = sessions[i].turns;
    REQUIRE(turns.size() == 2);
    CHECK((turns[0].prompt.size() >= 58 && turns[0].prompt.size() <= 158));
    CHECK((turns[1].prompt.size() >= 50 && turns[1].prompt.size() <= 150));
    CHECK((turns[0].output_len >= 10 && turns[0].output_len <= 30));
    sum += static_cast<double>(turns[1].prompt.size());
    // The same group, the same prefix; another group, another.
    const auto prefix = [&](size_t s) {
      return std::vector<int32_t>(sessions[s].turns[0].prompt.begin(),
                                  sessions[s].turns[0].prompt.begin() + 8);
    };
    CHECK(prefix(i) == prefix(i % 3));
    if (i % 3 != 0) CHECK(prefix(i) != prefix(0));
    for (const int32_t id : turns[0].prompt) CHECK((id >= 0 && id < 1000 && id != 1 && id != 2));
  }
  CHECK(sum / 45 == Approx(100).epsilon(0.2));
  Workload again(o, model());
  CHECK(all_of(again)[44].turns[1].prompt == sessions[44].turns[1].prompt);
  o.seed = 1;
  Workload other(o, model());
  CHECK(all_of(other)[44].turns[1].prompt != sessions[44].turns[1].prompt);
}

TEST_CASE("lognormal lengths have the mean asked for", "[load]") {
  BenchServeOptions o;
  o.dataset = "lognormal";
  o.num_prompts = 3000;
  o.input_len = 200;
  o.output_len = 50;
  o.sigma = 0.7;
  Workload workload(o, model(100000));
  double input = 0, output = 0, longest = 0;
  for (const LoadSession& s : all_of(workload)) {
    input += static_cast<double>(s.turns[0].prompt.size()) / 3000;
    output += s.turns[0].output_len / 3000.0;
    longest = std::max(longest, static_cast<double>(s.turns[0].prompt.size()));
  }
  CHECK(input == Approx(200).epsilon(0.1));
  CHECK(output == Approx(50).epsilon(0.1));
  CHECK(longest > 800);
}

TEST_CASE("no request asks for more than the context holds", "[load]") {
  BenchServeOptions o;
  o.num_prompts = 50;
  o.input_len = 60;
  o.output_len = 60;
  o.turns = 5;
  Workload workload(o, model(200));
  for (const LoadSession& session : all_of(workload)) {
    size_t used = 0;
    for (const LoadTurn& turn : session.turns) used += turn.prompt.size() + turn.output_len;
    CHECK(used <= 200);
    CHECK(session.turns.size() < 5);
  }
}

TEST_CASE("cancels and deadlines fall on the share and the range asked for", "[load]") {
  BenchServeOptions o;
  o.num_prompts = 2000;
  o.input_len = 1;
  o.output_len = 10;
  o.cancel_fraction = 0.25;
  o.deadline_ms = "50:150";
  Workload workload(o, model());
  int cancelled = 0;
  for (const LoadSession& s : all_of(workload)) {
    if (s.turns[0].cancel_after >= 0) ++cancelled;
    CHECK(s.turns[0].cancel_after < 10);
    CHECK((s.turns[0].deadline_seconds >= 0.05 && s.turns[0].deadline_seconds <= 0.15));
  }
  CHECK(cancelled / 2000.0 == Approx(0.25).margin(0.05));
  CHECK(parse_deadline("200") == std::pair(0.2, 0.2));
  for (const char* wrong : {"x", "0", "5:", "9:3", "-1", "1:2:3", "inf"}) {
    CAPTURE(wrong);
    CHECK_THROWS_WITH(parse_deadline(wrong), Contains("--deadline-ms"));
  }
}

TEST_CASE("a trace is sent at its own times", "[load]") {
  const TextFile file(
      "{\"timestamp\": 12.5, \"input_len\": 30, \"output_len\": 4}\n\n"
      "{\"timestamp\": 10, \"input_len\": 20, \"output_len\": 3, \"user\": \"x\"}\n"
      "{\"timestamp\": 14.5, \"input_length\": 40, \"output_length\": 5}\n");
  BenchServeOptions o;
  o.dataset = "trace";
  o.dataset_path = file.path;
  o.trace_speedup = 2;
  Workload workload(o, model());
  const auto sessions = all_of(workload);
  REQUIRE(sessions.size() == 3);
  const struct {
    double at;
    size_t input;
    int32_t output;
  } expected[] = {{0, 20, 3}, {1.25, 30, 4}, {2.25, 40, 5}};
  for (int i = 0; i < 3; ++i) {
    CHECK(sessions[i].at == Approx(expected[i].at));
    CHECK(sessions[i].turns[0].prompt.size() == expected[i].input);
    CHECK(sessions[i].turns[0].output_len == expected[i].output);
  }
  for (const char* wrong :
       {"", "[]", "{\"timestamp\": 1}",
        "{\"timestamp\": \"x\", \"input_len\": 1, \"output_len\": 1}",
        "{\"timestamp\": 1, \"input_len\": 0, \"output_len\": 1}",
        "{\"timestamp\": 1, \"input_len\": 1e9, \"output_len\": 1}", "{\"timest"}) {
    CAPTURE(wrong);
    CHECK_THROWS_AS(parse_trace(wrong, "t.jsonl"), InvalidInput);
  }
}

TEST_CASE("ShareGPT conversations keep their turns", "[load]") {
  const TextFile file(R"([
    {"conversations": [{"from": "human", "value": "12345"}, {"from": "gpt", "value": "123"},
                       {"from": "human", "value": "12"}, {"from": "gpt", "value": "1234"}]},
    {"conversations": [{"from": "gpt", "value": "begins wrongly"}]}, 7, {"conversations": "x"}])");
  BenchServeOptions o;
  o.dataset = "sharegpt";
  o.dataset_path = file.path;
  o.turns = 2;
  o.num_prompts = 5;
  Workload workload(o, model());
  const auto sessions = all_of(workload);
  REQUIRE(sessions.size() == 3);  // of one conversation, again and again; the last is cut
  CHECK(sessions[0].turns[0].prompt.size() == 5);
  CHECK(sessions[0].turns[0].output_len == 3);
  CHECK(sessions[0].turns[1].prompt.size() == 2);
  CHECK(sessions[0].turns[1].output_len == 4);
  CHECK(sessions[2].turns.size() == 1);
  for (const char* wrong : {"{}", "[]", "[{\"conversations\": []}]", "["}) {
    CHECK_THROWS_AS(parse_sharegpt(wrong, "s.json"), InvalidInput);
  }
}

TEST_CASE("options out of range are refused by name", "[load]") {
  const auto refused = [](const char* flag, auto change) {
    BenchServeOptions o;
    change(o);
    CAPTURE(flag);
    CHECK_THROWS_WITH(Workload(o, model()), Contains(flag));
  };
  refused("--request-rate", [](auto& o) { o.request_rate = 0; });
  refused("--burstiness", [](auto& o) { o.burstiness = -1; });
  refused("--burst-size", [](auto& o) { o.burst_size = 0; });
  refused("--random-input-len", [](auto& o) { o.input_len = 0; });
  refused("--random-output-len", [](auto& o) { o.output_len = 0; });
  refused("--random-range-ratio", [](auto& o) { o.range_ratio = 1; });
  refused("--num-turns", [](auto& o) { o.turns = 0; });
  refused("--cancel-fraction", [](auto& o) { o.cancel_fraction = 1.5; });
  refused("--dataset-path", [](auto& o) { o.dataset = "trace"; });
  refused("no/such", [](auto& o) {
    o.dataset = "sharegpt";
    o.dataset_path = "no/such";
  });
  BenchServeOptions o;
  o.percentile_metrics = "ttft,x";
  CHECK_THROWS_WITH(report_options(o), Contains("--percentile-metrics x"));
  o = {};
  o.metric_percentiles = "50,101";
  CHECK_THROWS_WITH(report_options(o), Contains("101"));
  o = {};
  o.goodput = {"itl:5"};
  CHECK_THROWS_WITH(report_options(o), Contains("--goodput itl:5"));
}

// The values of numpy.percentile, numpy.mean and numpy.std of the same list.
TEST_CASE("figures are NumPy's", "[load]") {
  const LatencyFigures f = latency_figures({0.009, 0.001, 0.002, 0.004}, {25, 90, 99.9});
  CHECK(f.mean == Approx(4.0));
  CHECK(f.median == Approx(3.0));
  CHECK(f.deviation == Approx(3.0822070));
  REQUIRE(f.percentiles.size() == 3);
  CHECK(f.percentiles[0].second == Approx(1.75));
  CHECK(f.percentiles[1].second == Approx(7.5));
  CHECK(f.percentiles[2].second == Approx(8.985));
  CHECK(latency_figures({}, {99}).percentiles[0].second == 0);
}

LoadOutcome outcome(int code, double ttft, double latency, int32_t tokens, bool cancelled = false) {
  LoadOutcome o;
  o.answer.code = code;
  o.answer.error = code == 0 ? "" : "why";
  o.answer.cancelled = cancelled;
  o.answer.ttft = ttft;
  o.answer.latency = o.answer.ended = latency;
  o.answer.output_tokens = tokens;
  o.answer.prompt_tokens = 10;
  for (int32_t i = 1; i < tokens; ++i)
    o.answer.itl.push_back(static_cast<float>((latency - ttft) / (tokens - 1)));
  return o;
}

TEST_CASE("the table and the JSON say what came", "[load]") {
  LoadRecord record;
  record.outcomes = {outcome(0, 0.1, 0.5, 5), outcome(0, 0.3, 0.3, 1), outcome(1, -1, 0, 0, true),
                     outcome(8, -1, 0, 0), outcome(8, -1, 0, 0)};
  record.duration = 2;
  record.peak_concurrency = 3;
  record.seconds = {{.sent = 5, .tokens = 4}, {.tokens = 2}};
  record.cpu_seconds = 60e-6;
  BenchServeOptions o;
  o.goodput = {"ttft:200", "tpot:150"};
  o.max_concurrency = 3;
  o.request_rate = 4;
  o.save_detailed = true;
  const LoadResult result = make_result(record, report_options(o));
  CHECK(result.completed == 2);
  CHECK(result.cancelled == 1);
  CHECK(result.failed == 2);
  CHECK(result.completed + result.cancelled + result.failed ==
        static_cast<int64_t>(record.outcomes.size()));
  CHECK(result.request_goodput == Approx(0.5));
  CHECK(result.client_cpu_us_per_token == Approx(10));
  CHECK(result.first_error == "RESOURCE_EXHAUSTED: why");

  const std::string table = result_table(result, o);
  for (const char* line : {
           "============ Serving Benchmark Result ============\n",
           "Successful requests:                     2         \n",
           "Failed requests:                         2         \n",
           "Maximum request concurrency:             3         \n",
           "Request rate configured (RPS):           4.00      \n",
           "Benchmark duration (s):                  2.00      \n",
           "Total input tokens:                      20        \n",
           "Total generated tokens:                  6         \n",
           "Request throughput (req/s):              1.00      \n",
           "Request goodput (req/s):                 0.50      \n",
           "Output token throughput (tok/s):         3.00      \n",
           "Peak output token throughput (tok/s):    4.00      \n",
           "Peak concurrent requests:                3.00      \n",
           "Total token throughput (tok/s):          13.00     \n",
           "---------------Time to First Token----------------\n",
           "Mean TTFT (ms):                          200.00    \n",
           "-----Time per Output Token (excl. 1st token)------\n",
           "Median TPOT (ms):                        100.00    \n",
           "---------------Inter-token Latency----------------\n",
           "P99 ITL (ms):                            100.00    \n",
           "----------------End-to-end Latency----------------\n",
           "Mean E2EL (ms):                          400.00    \n",
       }) {
    CHECK_THAT(table, Contains(line));
  }
  CHECK_THAT(table, Catch::Matchers::EndsWith("\n" + std::string(50, '=') + "\n"));

  const auto json = result_json(result, record, o, {"org/model", 100, 1000, {}});
  for (const char* metric : {"ttft", "tpot", "itl", "e2el"}) {
    for (const char* figure : {"mean_", "median_", "std_", "p90_", "p99_"}) {
      CHECK(json.contains(std::string(figure) + metric + "_ms"));
    }
  }
  CHECK(json["completed"] == 2);
  CHECK(json["failed"] == 2);
  CHECK(json["request_goodput"] == 0.5);
  CHECK(json["output_throughput"] == 3.0);
  CHECK(json["total_token_throughput"] == 13.0);
  CHECK(json["request_throughput"] == 1.0);
  CHECK(json["status_counts"]["RESOURCE_EXHAUSTED"] == 2);
  CHECK(json["series"].size() == 2);
  CHECK(json["ttfts"].size() == 5);
  o.result_dir = "out";
  o.result_filename = "r.json";
  CHECK(result_path(o, "org/model", false) == "out/r.json");
  CHECK(result_path(o, "org/model", true) == "out/r-4qps-concurrency3.json");
  o.result_filename.clear();
  CHECK_THAT(result_path(o, "org/model", true), Contains("out/shoal-4qps-concurrency3-model-"));
}

}  // namespace
}  // namespace shoal
