#include "server/serve_command.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "kernels/base/error.h"
#include "runtime/checkpoint/model_dir.h"
#include "runtime/model/model_config.h"
#include "server/engine_supervisor.h"
#include "server/front_end.h"
#include "server/grpc_server.h"
#include "server/signals.h"
#include "server/start_log.h"

namespace shoal {
namespace {

using std::chrono::milliseconds;

// How often stalled streams and the statistics are looked at; once a second costs an idle server
// nothing.
constexpr milliseconds kTick{1000};
// While the model loads: what makes a bar move.
constexpr milliseconds kLoadTick{200};
// A gateway that probes health sees NOT_SERVING before new calls are refused.
constexpr milliseconds kProbePeriod{500};
// Of a connection, beside its calls of Chat and Complete: status, health, refused calls.
constexpr int kSpareStreams = 256;

ServedModel served_model(const ServeOptions& options, const std::string& dir,
                         const ModelConfig& config) {
  ServedModel model;
  model.name = options.served_model_name.empty() ? options.engine.model : options.served_model_name;
  model.architecture = config.architecture_name;
  model.vocab_size = static_cast<int32_t>(config.vocab_size);
  model.eos_token_ids = config.eos_token_ids;
  model.bos_token_id = config.bos_token_id;
  if (options.generation_config == "auto") model.defaults = read_generation_defaults(dir);
  return model;
}

ChatTemplate chat_template(const ServeOptions& options, const std::string& dir) {
  ChatTemplate of_checkpoint = ChatTemplate::FromCheckpoint(dir);
  if (options.chat_template.empty()) {
    if (of_checkpoint.is_fallback()) spdlog::warn("no chat template in {}: ChatML stands in", dir);
    return of_checkpoint;
  }
  std::ifstream file(options.chat_template, std::ios::binary);
  const std::string source{std::istreambuf_iterator<char>(file), {}};
  if (!file || source.empty()) {
    throw_invalid("--chat-template {}: no such file, or an empty one", options.chat_template);
  }
  return ChatTemplate(source, of_checkpoint.bos_token(), of_checkpoint.eos_token());
}

// Made-up weights need no files, but text has to become tokens.
void check_tokenizer(const ServeOptions& options, const std::string& dir) {
  if (options.engine.load_format != "dummy" || !std::filesystem::is_directory(dir)) return;
  if (std::filesystem::exists(dir + "/tokenizer.json")) return;
  throw_invalid("{}: tokenizer.json is missing; --load-format dummy makes up weights, but a server needs a "
                "tokenizer: put the model's beside config.json",
                dir);
}

// Waits until the engine is ready. False: a signal came first.
bool wait_ready(const EngineClient& engine, StopSignals* signals) {
  LoadProgressLog progress(isatty(STDERR_FILENO));
  while (signals->count() == 0) {
    const EngineStatus status = engine.status();
    progress.update(status);
    if (status.state == EngineState::kReady) {
      progress.end();
      log_ready(status);
      return true;
    }
    if (status.state == EngineState::kFailed) {
      progress.end();
      // Ranks that died are tried again; given up at once is a wrong flag or file.
      if (status.restarts == 0) throw InvalidInput(status.detail);
      throw DeviceFault(status.detail);
    }
    signals->wait(kLoadTick);
  }
  progress.end();
  return false;
}

// Runs until a signal comes; health follows the engine. Throws DeviceFault when it fails for good.
void serve_until_signal(const ServeOptions& options, const EngineClient& engine, GrpcServer* server,
                        FrontEnd* front_end, StopSignals* signals) {
  const auto stall_timeout = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(options.stream_stall_timeout));
  StatisticsLog statistics;
  bool serving = true;
  while (signals->wait(kTick) == 0) {
    front_end->book().end_stalled(stall_timeout);
    const EngineStatus status = engine.status();
    const bool ready = status.state == EngineState::kReady;
    if (ready != std::exchange(serving, ready)) server->set_serving(ready);
    statistics.update(status);
    if (status.state == EngineState::kFailed) {
      server->shutdown(kProbePeriod);  // the open calls' last words are on their way
      throw DeviceFault(status.detail);
    }
  }
}

// Health first, then no new calls, then the running ones until the timeout or a second signal.
void drain(const ServeOptions& options, GrpcServer* server, FrontEnd* front_end,
           StopSignals* signals) {
  server->set_serving(false);
  spdlog::info("Shutting down: {} calls finish within {:.0f} s (--drain-timeout)",
               front_end->book().counts().open, options.drain_timeout);
  if (front_end->book().counts().open > 0) signals->wait(kProbePeriod);
  front_end->drain();
  const Clock::time_point deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(
                         std::chrono::duration<double>(options.drain_timeout));
  while (front_end->book().counts().open > 0 && signals->count() < 2 && Clock::now() < deadline) {
    signals->wait(milliseconds(50));
  }
  front_end->book().end_all({CallCode::kUnavailable, "the server is shutting down"});
  server->shutdown(kProbePeriod);
}

}  // namespace

int run_serve(const ServeOptions& options) {
  // Everything that can be wrong without the ranks is found before they are started.
  StopSignals signals({SIGTERM, SIGINT});
  const std::string dir = resolve_model_dir(options.engine.model, options.engine.revision);
  const ModelConfig config = read_model_config(dir);
  ServedModel model = served_model(options, dir, config);
  check_tokenizer(options, dir);
  Tokenizer tokenizer = Tokenizer::FromCheckpoint(dir);
  ChatTemplate templates = chat_template(options, dir);
  spdlog::info("Resolved architecture: {} ({})", config.architecture_name, dir);

  EngineSupervisor engine({.engine = options.engine});
  engine.set_on_state([&signals](const EngineStatus&) { signals.wake(); });
  FrontEnd front_end(std::move(model), std::move(tokenizer), std::move(templates), engine,
                     options.max_queue);
  GrpcServer server({.host = options.host,
                     .port = options.port,
                     .api_key = options.api_key,
                     .max_message_bytes = max_message_bytes(config.max_position_embeddings),
                     .max_streams = options.max_queue + kSpareStreams},
                    front_end);
  spdlog::info("Listening on {} (NOT_SERVING until the model is loaded)", server.address());
  if (wait_ready(engine, &signals)) {
    server.set_serving(true);
    spdlog::info("Ready: {} on {}, try: shoal chat --server {} \"Hello\"", front_end.model_name(),
                 server.address(), server.address());
    serve_until_signal(options, engine, &server, &front_end, &signals);
  }
  drain(options, &server, &front_end, &signals);
  engine.stop();
  spdlog::info("Bye");
  return 0;
}

}  // namespace shoal
