// The `shoal` command: command line in, exit code out. The only place that turns an error into an
// exit:
//   0 fine, 1 the command's own failure (plan: it does not fit), 2 bad input (flag, file, request), 3 device fault, 4 bug.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/backend.h"
#include "server/bench_command.h"
#include "server/chat_command.h"
#include "server/collect_env_command.h"
#include "server/flags.h"
#include "server/inspect_command.h"
#include "server/logits_command.h"
#include "server/plan_command.h"
#include "server/perplexity_command.h"
#include "server/quantize_command.h"
#include "server/rank_command.h"
#include "server/security/key_command.h"
#include "server/serve_command.h"
#include "server/top_command.h"

namespace shoal {
namespace {

enum ExitCode { kOk = 0, kInvalidInput = 2, kDeviceFault = 3, kBug = 4 };

void log_to_stderr() {
  auto logger = spdlog::stderr_color_mt("shoal");
  logger->set_pattern("%Y-%m-%d %H:%M:%S %^%L%$ %v");
  spdlog::set_default_logger(std::move(logger));
}

// One line, whatever the message holds: scripts and people read it as one.
std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

int fail(int code, const std::string& message) {
  fmt::print(stderr, "shoal: error: {}\n", one_line(message));
  return code;
}

int run(int argc, char** argv) {
  CLI::App app{"Serves DeepSeek models, and dense models distilled from them, over gRPC.", "shoal"};
  app.require_subcommand(0, 1);  // none is told apart from a wrong one below
  app.set_version_flag("--version", std::string("shoal ") + SHOAL_VERSION);
  app.footer("Every flag has an environment variable: --max-model-len is SHOAL_MAX_MODEL_LEN.");
  bool show_config = false;

  ServeOptions serve_options;
  CLI::App* serve = app.add_subcommand("serve", "Serve a model over gRPC");
  add_engine_flags(*serve, serve_options.engine);
  add_serve_flags(*serve, serve_options);
  add_placement_flags(*serve, serve_options.engine.placement);
  serve->add_flag("--print-config", show_config, "Print every flag with its value, and end")
      ->configurable(false);

  ChatOptions chat_options;
  CLI::App* chat =
      app.add_subcommand("chat", "Ask a running server: once, in a pipe, or a session");
  add_chat_flags(*chat, chat_options);

  BenchOptions bench_options;
  CLI::App* bench = app.add_subcommand("bench", "Measure a running server under load");
  add_bench_flags(*bench, bench_options);
  TopOptions top_options;
  CLI::App* top = app.add_subcommand("top", "Watch a running server: load, latency, ranks, experts, memory");
  add_top_flags(*top, top_options);
  CollectEnvOptions collect_env_options;
  CLI::App* collect = app.add_subcommand("collect-env", "Print what a bug report should say of build and machine");
  add_collect_env_flags(*collect, collect_env_options);
  HealthOptions health_options;
  CLI::App* health = app.add_subcommand("health", "Ask a running server whether it serves; 0: it does");
  add_health_flags(*health, health_options);
  LogitsOptions logits_options;
  CLI::App* logits = app.add_subcommand("logits", "Write the logits of every position to a file");
  add_logits_flags(*logits, logits_options);
  PerplexityOptions perplexity_options;
  CLI::App* perplexity = app.add_subcommand("perplexity", "Measure how well a model predicts a text");
  add_perplexity_flags(*perplexity, perplexity_options);
  QuantizeCommandOptions quantize_options;
  CLI::App* quantize = app.add_subcommand("quantize", "Write a model again with quantised weights");
  add_quantize_flags(*quantize, quantize_options);
  InspectOptions inspect_options;
  CLI::App* inspect = app.add_subcommand("inspect", "Show a checkpoint without loading it");
  add_inspect_flags(*inspect, inspect_options);
  PlanCommandOptions plan_options;
  CLI::App* plan = app.add_subcommand(
      "plan", "Say whether GPUs can serve a model, how fast, and what would have to change");
  add_plan_flags(*plan, plan_options);
  KeyOptions key_options;
  CLI::App* key = app.add_subcommand("key", "Make keys for --api-key-file");
  key->require_subcommand(1);
  CLI::App* key_new = key->add_subcommand("new", "Print a fresh key on stderr, and its line on stdout");
  key_new->add_option("--name", key_options.name, "Whose it is: 1 to 64 letters, digits and ._-@")
      ->required()
      ->configurable(false);
  EngineOptions rank_options;
  std::string socket_path;
  CLI::App* rank = app.add_subcommand("rank", "One rank of an engine; started by serve");
  rank->group("");  // not for people: left out of --help
  add_engine_flags(*rank, rank_options);
  rank->add_option("--socket", socket_path, "Unix socket of rank 0")->required();
  CLI::App* version = app.add_subcommand("version", "Print the version, and what this build and machine can run on");

  add_environment_twins(app);
  std::vector<std::string> args = normalise_args(argc, argv);
  std::reverse(args.begin(), args.end());  // CLI11 takes them from the back
  try {
    app.parse(std::move(args));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return fail(kInvalidInput, fmt::format("{} (shoal --help shows what there is)", error.what()));
  }
  if (app.get_subcommands().empty()) {
    return fail(kInvalidInput, "a command is missing: serve, chat, health, top, key, bench, logits, perplexity, quantize, inspect, plan, collect-env or version");
  }

  serve->parsed() ? set_up_log(serve_options.observability) : log_to_stderr();
  if (version->parsed()) {
    fmt::print("shoal {}\n{}\n", SHOAL_VERSION, backend_summary());
    return kOk;
  }
  if (chat->parsed()) return run_chat(chat_options);
  if (bench->parsed()) return run_bench(*bench, bench_options);
  if (health->parsed()) return run_health(health_options);
  if (top->parsed()) return run_top(top_options);
  if (collect->parsed()) return run_collect_env(collect_env_options);
  if (key_new->parsed()) return run_key_new(key_options);
  if (logits->parsed()) return run_logits(logits_options);
  if (perplexity->parsed()) return run_perplexity(perplexity_options);
  if (quantize->parsed()) return run_quantize(quantize_options);
  if (inspect->parsed()) return run_inspect(inspect_options);
  if (plan->parsed()) return run_plan(plan_options);
  if (rank->parsed()) return run_rank(rank_options, socket_path);
  if (show_config) {
    fmt::print("{}", print_config(*serve));
    return kOk;
  }
  for (const std::string& name : unknown_environment(app)) {
    spdlog::warn("unknown environment variable {}: no flag reads it", name);
  }
  std::string given;
  for (const std::string& arg : non_default_args(*serve)) given += (given.empty() ? "" : " ") + arg;
  spdlog::info("shoal {}", SHOAL_VERSION);
  spdlog::info("non-default args: {}", given);
  return run_serve(serve_options);
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  try {
    return shoal::run(argc, argv);
  } catch (const shoal::InvalidInput& error) {
    return shoal::fail(shoal::kInvalidInput, error.what());
  } catch (const shoal::DeviceFault& error) {
    return shoal::fail(shoal::kDeviceFault, error.what());
  } catch (const std::exception& error) {
    return shoal::fail(shoal::kBug, fmt::format("bug: {}", error.what()));
  }
}
