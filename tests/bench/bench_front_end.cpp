// shoal_bench_front_end: what the front end itself costs for each token that it streams: CPU time
// of the process that `shoal serve` is (gRPC, admission, text, the conversation with rank 0), over
// ranks without a model that give every stream a token each step. The load comes from another
// process, whose own cost is shown beside it; the ranks are a third.
//   shoal_bench_front_end --streams 1,10,100,500 --json front_end.json
#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "server/engine_service.h"
#include "server/engine_supervisor.h"
#include "server/front_end.h"
#include "server/grpc_server.h"
#include "server/load/load_result.h"
#include "tests/bench/run_main.h"
#include "tests/runtime/fake_model.h"
#include "tests/server/test_model.h"

namespace shoal::bench {
namespace {

using std::chrono::steady_clock;

constexpr int32_t kVocab = 40;  // ids of single characters
constexpr int32_t kContext = 4096, kMaxStreams = 1024, kPage = 64;

// Chooses tokens, in steps of a given time: faster ones would give a stream several tokens a
// message, which costs less a token than what is measured here.
class PacedModel : public FakeModel {
 public:
  PacedModel(const SchedulerConfig& config, std::chrono::microseconds step)
      : FakeModel(config, kVocab), step_(step) {}
  std::span<const float> run(const StepPlan& plan) override {
    next_ = std::max(next_ + step_, steady_clock::now());
    std::this_thread::sleep_until(next_);
    return FakeModel::run(plan);
  }

 private:
  const std::chrono::microseconds step_;
  steady_clock::time_point next_{};
};

class LoneGroup : public ProcessGroup {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void broadcast(std::vector<std::byte>&) override {}
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte>) override { return {}; }
  int64_t min(int64_t value) override { return value; }
  void barrier() override {}
  [[noreturn]] void abort(const std::string& reason) override { throw DeviceFault(reason); }
};

int run_rank(std::chrono::microseconds step, const std::string& socket) {
  EngineConfig config;
  config.vocab_size = kVocab;
  config.scheduler.max_num_seqs = kMaxStreams;
  config.scheduler.max_num_batched_tokens = 1 << 16;
  config.scheduler.max_model_len = kContext;
  config.scheduler.page_size = kPage;
  config.scheduler.num_pages = kMaxStreams * 16;
  config.scheduler.enable_prefix_caching = false;
  PacedModel model(config.scheduler, step);
  LoneGroup group;
  EngineService service(socket);
  Engine* self = nullptr;
  Engine engine(config, group, model, [&](std::vector<TokenEvent> events) {
    service.emit(std::move(events), self->stats());
  });
  self = &engine;
  service.serve(
      engine,
      {.max_model_len = kContext, .kv_tokens = kMaxStreams * 16 * kPage, .ranks = {"none"}});
  engine.run();
  service.release();
  return 0;
}

// The front end, until standard input ends. Its address goes to standard output.
int run_server(std::chrono::microseconds step) {
  spdlog::set_level(spdlog::level::warn);
  SupervisorOptions options;
  char self[4096];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof self);
  SHOAL_CHECK(length > 0);
  options.command = {std::string(self, static_cast<size_t>(length)), "rank",
                     std::to_string(step.count())};
  EngineSupervisor engine(options);
  FrontEnd front_end(test_model(), test_tokenizer(), test_template(), engine,
                     AdmissionOptions{.max_sequences = kMaxStreams});
  GrpcServerOptions listen;
  listen.max_streams = 2 * kMaxStreams;
  GrpcServer server(listen, front_end);
  while (engine.status().state != EngineState::kReady)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  server.set_serving(true);
  fmt::print("{}\n", server.address());
  std::fflush(stdout);
  while (std::getchar() != EOF) continue;
  server.shutdown(std::chrono::seconds(1));
  return 0;
}

// A child that runs this program as the server.
class ServerProcess {
 public:
  explicit ServerProcess(std::chrono::microseconds step) {
    int in[2], out[2];
    SHOAL_CHECK(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
    const std::string time = std::to_string(step.count());
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      execl("/proc/self/exe", "shoal_bench_front_end", "server", time.c_str(), nullptr);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    stdin_ = in[1];
    for (char c; read(out[0], &c, 1) == 1 && c != '\n';) address_ += c;
    close(out[0]);
    if (address_.empty()) throw DeviceFault("the front end did not start");
    SHOAL_CHECK(clock_getcpuclockid(pid_, &clock_) == 0);
  }
  ~ServerProcess() {
    close(stdin_);
    waitpid(pid_, nullptr, 0);
  }
  const std::string& address() const { return address_; }
  pid_t pid() const { return pid_; }
  double cpu_seconds() const {  // of this process alone, not of its ranks
    timespec time{};
    clock_gettime(clock_, &time);
    return static_cast<double>(time.tv_sec) + time.tv_nsec * 1e-9;
  }

 private:
  pid_t pid_ = -1;
  int stdin_ = -1;
  clockid_t clock_{};
  std::string address_;
};

struct Row {
  int streams = 0;
  LoadResult result;
  double server_us = 0;
};

Row measure(const ServerProcess& server, int streams, int requests, int tokens) {
  BenchServeOptions options;
  options.address.server = server.address();
  options.input_len = 32;
  options.output_len = tokens;
  options.ignore_eos = true;
  options.max_concurrency = streams;
  options.num_prompts = int64_t{streams} * requests;
  LoadClient client(options.address, /*chat=*/false, 1);
  const LoadServer model = client.connect([](const std::string&) {});
  Workload workload(options, {kVocab, model.context_length, model.end_ids, {}});
  LoadRun run(options, client, workload, {});
  run.warm_up(std::min(streams, 16));
  const double before = server.cpu_seconds();
  const LoadRecord record = run.run({}, std::atomic<bool>(false));
  Row row{streams, make_result(record, report_options(options)), server.cpu_seconds() - before};
  if (row.result.completed != options.num_prompts) {
    throw DeviceFault(fmt::format("{} of {} requests were answered: {}", row.result.completed,
                                  options.num_prompts, row.result.first_error));
  }
  row.server_us *= 1e6 / static_cast<double>(row.result.output_tokens);
  return row;
}

int run(int argc, char** argv) {
  CLI::App app("CPU time of the front end for each token that it streams");
  std::vector<int> streams = {1, 2, 5, 10, 20, 50, 100, 200, 500};
  int step_us = 20000, tokens = 256, requests = 1;
  bool wait = false;
  std::string json_path;
  app.add_option("--streams", streams, "so many at once")
      ->delimiter(',')
      ->check(CLI::Range(1, kMaxStreams));
  app.add_option("--step-us", step_us, "a step of the ranks")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  app.add_option("--tokens", tokens, "of an answer")
      ->check(CLI::Range(1, kContext - 64))
      ->capture_default_str();
  app.add_option("--requests", requests, "of each stream")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--wait", wait, "print the server's process id and wait for a line first: for perf");
  app.add_option("--json", json_path, "file to write");
  CLI11_PARSE(app, argc, argv);

  const ServerProcess server{std::chrono::microseconds(step_us)};
  if (wait) {
    fmt::print("server: process {}\n", server.pid());
    std::fflush(stdout);
    while (std::getchar() != '\n') continue;
  }
  fmt::print("{:>8} {:>10} {:>10} {:>14} {:>16} {:>16}\n", "streams", "tokens", "tokens/s",
             "tokens/message", "server us/token", "client us/token");
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const int count : streams) {
    const Row row = measure(server, count, requests, tokens);
    const LoadResult& r = row.result;
    fmt::print("{:>8} {:>10} {:>10.0f} {:>14.2f} {:>16.2f} {:>16.2f}\n", count, r.output_tokens,
               r.output_throughput, r.tokens_per_message, row.server_us, r.client_cpu_us_per_token);
    std::fflush(stdout);
    rows.push_back({{"streams", count},
                    {"tokens", r.output_tokens},
                    {"tokens_per_second", r.output_throughput},
                    {"tokens_per_message", r.tokens_per_message},
                    {"server_us_per_token", row.server_us},
                    {"client_us_per_token", r.client_cpu_us_per_token}});
  }
  if (!json_path.empty()) {
    std::ofstream file(json_path);
    file << nlohmann::ordered_json{{"step_us", step_us}, {"rows", rows}}.dump(1) << "\n";
    if (!file) throw_invalid("--json {}: cannot be written", json_path);
  }
  return 0;
}

int dispatch(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "rank" && argc == 4)
    return run_rank(std::chrono::microseconds(std::stol(argv[2])), argv[3]);
  if (mode == "server" && argc == 3)
    return run_server(std::chrono::microseconds(std::stol(argv[2])));
  return run(argc, argv);
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
  return shoal::bench::run_main("shoal_bench_front_end", argc, argv, shoal::bench::dispatch);
}
