#include "server/bench_command.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <thread>

#include "kernels/base/error.h"
#include "server/load/load_result.h"
#include "server/progress_bar.h"
#include "server/signals.h"

namespace shoal {
namespace {

// Template and role tokens that Chat puts around each message, so that the context still holds a
// turn.
constexpr int32_t kTemplateTokens = 64;

// The first Ctrl-C ends sending; from then on signals do what they always do.
class Interrupt {
 public:
  Interrupt()
      : signals_(std::in_place, std::vector<int>{SIGINT, SIGTERM}), thread_([this] { watch(); }) {}
  ~Interrupt() {
    ending_ = true;
    {
      const std::lock_guard lock(mutex_);
      if (signals_) signals_->wake();
    }
    thread_.join();
  }
  const std::atomic<bool>& stop() const { return stop_; }

 private:
  void watch() {
    while (!ending_) {
      if (signals_->wait(std::chrono::hours(1)) == 0) continue;
      stop_ = true;
      spdlog::warn("interrupted: waiting for what runs; once more to end at once");
      const std::lock_guard lock(mutex_);
      signals_.reset();
      return;
    }
  }
  std::mutex mutex_;
  std::optional<StopSignals> signals_;  // guarded by mutex_ against watch() ending
  std::atomic<bool> stop_{false}, ending_{false};
  std::thread thread_;
};

void check(const BenchServeOptions& o) {
  report_options(o);
  if (!o.request_rates.empty() && !o.concurrencies.empty()) {
    throw_invalid("--request-rates and --concurrencies: give one of the two");
  }
  if (o.duration > 0 && o.num_prompts == 0 && o.dataset != "trace" && o.request_rates.empty() &&
      o.concurrencies.empty() && std::isinf(o.request_rate) && o.max_concurrency == 0) {
    throw_invalid(
        "--duration {}: give --request-rate, --max-concurrency or --num-prompts too, or requests "
        "without end are sent at once",
        o.duration);
  }
}

void save(const BenchServeOptions& o, const std::string& path, const nlohmann::ordered_json& json) {
  std::error_code error;
  if (!o.result_dir.empty()) std::filesystem::create_directories(o.result_dir, error);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  // What a server said in an error may be no UTF-8.
  file << json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  file.flush();
  if (!file) throw_invalid("--save-result: {} cannot be written", path);
  spdlog::info("wrote {}", path);
}

std::string describe(const BenchServeOptions& o) {
  std::string text =
      std::isinf(o.request_rate) ? "all at once" : fmt::format("{:g} requests/s", o.request_rate);
  if (o.dataset == "trace") text = "as the trace says";
  if (!std::isinf(o.request_rate)) text += ", " + o.arrival;
  if (o.max_concurrency > 0) text += fmt::format(", at most {} at once", o.max_concurrency);
  return text;
}

// One point of a sweep. False: nothing was answered.
bool run_point(const BenchServeOptions& o, LoadClient& client, const LoadServer& server,
               const std::atomic<bool>& stop, bool one_of_many) {
  const bool chat = o.backend == "shoal-chat";
  const int32_t context = server.context_length - (chat ? kTemplateTokens * o.turns : 0);
  Workload workload(o, {server.vocab_size, context, server.end_ids,
                        [&](const std::string& text) { return client.tokenize(text); }});
  std::function<std::string(const std::vector<int32_t>&)> detokenize;
  if (chat) detokenize = [&](const std::vector<int32_t>& ids) { return client.detokenize(ids); };
  LoadRun run(o, client, workload, detokenize);
  if (o.num_warmups > 0) {
    run.warm_up(o.num_warmups);
    spdlog::info("warmed up with {} requests", o.num_warmups);
  }
  spdlog::info("sending {}: {}",
               workload.num_requests() < 0 ? fmt::format("requests for {:g} s", o.duration)
                                           : fmt::format("{} requests", workload.num_requests()),
               describe(o));
  LoadRecord record;
  {
    ProgressBar bar("Bench", workload.num_requests() < 0 ? "s" : "requests");
    const auto start = std::chrono::steady_clock::now();
    record = run.run(
        [&](int64_t done) {
          const double seconds =
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
          if (workload.num_requests() >= 0) {
            bar.update(done, workload.num_requests());
          } else {
            bar.update(static_cast<uint64_t>(std::min(seconds, o.duration)),
                       static_cast<uint64_t>(std::ceil(o.duration)));
          }
        },
        stop);
  }
  const LoadResult result = make_result(record, report_options(o));
  fmt::print("{}", result_table(result, o));
  std::fflush(stdout);
  for (const auto& [status, count] : result.statuses) {
    if (status != "OK") spdlog::info("{}: {} requests", status, count);
  }
  if (!result.first_error.empty()) spdlog::warn("the first that failed: {}", result.first_error);
  spdlog::info(
      "this client: {:.1f} us of CPU per token, requests sent {:.2f} ms late on average, {:.2f} "
      "tokens a "
      "message",
      result.client_cpu_us_per_token, result.lag.mean, result.tokens_per_message);
  if (o.save_result || o.save_detailed) {
    save(o, result_path(o, server.model, one_of_many), result_json(result, record, o, server));
  }
  return result.completed > 0;
}

// The runs of a sweep; one without.
std::vector<BenchServeOptions> points_of(const BenchServeOptions& options) {
  std::vector<BenchServeOptions> points;
  for (const double rate : options.request_rates) {
    points.push_back(options);
    points.back().request_rate = rate;
  }
  for (const int concurrency : options.concurrencies) {
    if (concurrency < 1) throw_invalid("--concurrencies {}: at least 1", concurrency);
    points.push_back(options);
    points.back().max_concurrency = concurrency;
  }
  if (points.empty()) points.push_back(options);
  return points;
}

int run_bench_serve(const BenchServeOptions& options) {
  check(options);
  const std::vector<BenchServeOptions> points = points_of(options);
  // A wrong rate of the last point is said before the first one runs.
  for (const BenchServeOptions& point : points) Arrivals{point};
  LoadClient client(options.address, options.backend == "shoal-chat", options.connections);
  const LoadServer server = client.connect(
      [](const std::string& detail) { spdlog::info("the server is loading: {}", detail); });
  spdlog::info("server {}: {}", options.address.server, server.model);
  Interrupt interrupt;
  bool answered = true;
  for (const BenchServeOptions& point : points) {
    answered = run_point(point, client, server, interrupt.stop(), points.size() > 1) && answered;
    if (interrupt.stop()) break;
  }
  return answered ? 0 : 1;
}

void add_bench_serve_flags(CLI::App& app, BenchServeOptions& o) {
  add_server_flags(app, o.address);
  app.add_option("--connections", o.connections, "Connections that calls take turns on")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--backend", o.backend,
                 "shoal: Complete, with token ids; shoal-chat: Chat, with text")
      ->check(CLI::IsMember({"shoal", "shoal-chat"}))
      ->capture_default_str();
  const std::string asked = "Requests";
  app.add_option("--dataset-name", o.dataset, "random, lognormal, sharegpt or trace")
      ->check(CLI::IsMember({"random", "lognormal", "sharegpt", "trace"}))
      ->group(asked)
      ->capture_default_str();
  app.add_option("--dataset-path", o.dataset_path,
                 "ShareGPT's JSON, or a trace: a line {\"timestamp\": s, \"input_len\": n, "
                 "\"output_len\": n} each")
      ->group(asked);
  app.add_option("--num-prompts", o.num_prompts,
                 "Requests; 0: 1000, or without end under --duration")
      ->check(CLI::NonNegativeNumber)
      ->group(asked)
      ->capture_default_str();
  app.add_option("--random-input-len,--input-len", o.input_len, "Tokens of a prompt")
      ->group(asked)
      ->capture_default_str();
  app.add_option("--random-output-len,--output-len", o.output_len, "Tokens of an answer at most")
      ->group(asked)
      ->capture_default_str();
  app.add_option("--random-range-ratio", o.range_ratio,
                 "Lengths uniform in length * [1 - r, 1 + r]")
      ->group(asked)
      ->capture_default_str();
  app.add_option("--lognormal-sigma", o.sigma,
                 "--dataset-name lognormal: of the logarithm of the lengths")
      ->group(asked)
      ->capture_default_str();
  app.add_option("--random-prefix-len", o.prefix_len,
                 "Tokens before the prompt, the same within a group")
      ->group(asked)
      ->capture_default_str();
  app.add_option("--random-num-prefixes", o.num_prefixes, "Groups that share a prefix")
      ->group(asked)
      ->capture_default_str();
  app.add_option("--num-turns", o.turns,
                 "Turns of a conversation; each carries what was said before")
      ->group(asked)
      ->capture_default_str();
  app.add_option("--turn-delay", o.turn_delay, "Seconds between an answer and the next question")
      ->check(CLI::NonNegativeNumber)
      ->group(asked)
      ->capture_default_str();
  app.add_flag("--ignore-eos", o.ignore_eos,
               "Answers go on after the model's end: all have full length")
      ->group(asked);
  app.add_option("--temperature", o.temperature, "0: the most likely token")
      ->check(CLI::Range(0.0, 100.0))
      ->group(asked)
      ->capture_default_str();
  app.add_option("--seed", o.seed, "Same seed, same requests")->group(asked)->capture_default_str();
  const std::string when = "Pace";
  app.add_option("--request-rate", o.request_rate, "Requests per second; inf: all at once")
      ->group(when)
      ->default_str("inf");
  app.add_option("--burstiness", o.burstiness,
                 "Shape of the gamma distribution of gaps; 1: Poisson; less: bursts")
      ->group(when)
      ->capture_default_str();
  app.add_option("--arrival", o.arrival,
                 "poisson (with --burstiness), constant, or burst (of --burst-size)")
      ->check(CLI::IsMember({"poisson", "constant", "burst"}))
      ->group(when)
      ->capture_default_str();
  app.add_option("--burst-size", o.burst_size, "Requests at once")
      ->group(when)
      ->capture_default_str();
  app.add_option("--trace-speedup", o.trace_speedup, "The trace's clock runs so much faster")
      ->group(when)
      ->capture_default_str();
  app.add_option("--max-concurrency", o.max_concurrency, "Requests at once at most; 0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->group(when)
      ->capture_default_str();
  app.add_option("--duration", o.duration, "Seconds in which requests are sent; 0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->group(when)
      ->capture_default_str();
  app.add_option("--num-warmups", o.num_warmups, "Requests before, which do not count")
      ->check(CLI::Range(0, 100000))
      ->group(when)
      ->capture_default_str();
  app.add_option("--request-rates", o.request_rates, "1,2,4: a run for each")
      ->delimiter(',')
      ->group(when);
  app.add_option("--concurrencies", o.concurrencies, "1,2,4: a run for each")
      ->delimiter(',')
      ->group(when);
  const std::string faults = "Faults";
  app.add_option("--cancel-fraction", o.cancel_fraction,
                 "Share of requests that are cancelled on the way")
      ->group(faults)
      ->capture_default_str();
  app.add_option("--deadline-ms", o.deadline_ms,
                 "Deadline of every request: 500, or 50:5000 for any between")
      ->group(faults);
  const std::string said = "Result";
  app.add_option("--percentile-metrics", o.percentile_metrics, "Of ttft,tpot,itl,e2el")
      ->group(said)
      ->capture_default_str();
  app.add_option("--metric-percentiles", o.metric_percentiles, "Percentiles of each")
      ->group(said)
      ->capture_default_str();
  app.add_option("--goodput", o.goodput,
                 "ttft:200 tpot:50 e2el:5000: count requests within these milliseconds")
      ->expected(1, 3)
      ->group(said);
  app.add_flag("--save-result", o.save_result, "Write the figures as JSON")->group(said);
  app.add_flag("--save-detailed", o.save_detailed, "With every request's own figures")->group(said);
  app.add_option("--result-dir", o.result_dir, "Folder of the JSON")->group(said);
  app.add_option("--result-filename", o.result_filename, "Name of the JSON")->group(said);
  app.add_option("--label", o.label, "For the JSON and its name")->group(said);
}

}  // namespace

void add_bench_flags(CLI::App& app, BenchOptions& options) {
  app.require_subcommand(1);
  add_bench_serve_flags(
      *app.add_subcommand("serve", "Load a running server and measure latency and throughput"),
      options.serve);
}

int run_bench(const CLI::App& app, const BenchOptions& options) {
  SHOAL_CHECK(app.got_subcommand("serve"));
  return run_bench_serve(options.serve);
}

}  // namespace shoal
