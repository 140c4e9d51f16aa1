#include "server/serve_command.h"

#include <spdlog/spdlog.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "kernels/base/error.h"
#include "runtime/checkpoint/model_dir.h"
#include "runtime/model/model_config.h"
#include "server/drain.h"
#include "server/engine_supervisor.h"
#include "server/front_end.h"
#include "server/grpc_server.h"
#include "server/logging/log_format.h"
#include "server/service_notify.h"
#include "server/security/reloader.h"
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
// What calls that the engine's end has ended get to hear of it.
constexpr milliseconds kLastWords{500};
// How long the start may take from now on, as long as it goes on.
constexpr std::chrono::seconds kLoadExtension{30};
// The supervisor replaces ranks that hang after --step-timeout; where it does not, systemd may.
constexpr std::chrono::seconds kWatchdogMargin{30};
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
bool wait_ready(const EngineClient& engine, ProgressWatch* watch, ServiceNotify* notify,
                StopSignals* signals) {
  LoadProgressLog progress(log_shows_bars());
  while (signals->count() == 0) {
    const EngineStatus status = engine.status();
    progress.update(status);
    if (watch->alive(status)) notify->extend(kLoadExtension);
    notify->status(status.detail.empty() ? "starting" : status.detail);
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
                        FrontEnd* front_end, ProgressWatch* watch, ServiceNotify* notify,
                        StopSignals* signals) {
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
    if (watch->alive(status)) notify->alive();
    notify->status(ready ? fmt::format("Serving: {} running, {} waiting", status.running, status.waiting)
                         : status.detail);
    if (status.state == EngineState::kFailed) {
      server->shutdown(kLastWords);  // the open calls' last words are on their way
      throw DeviceFault(status.detail);
    }
  }
}

}  // namespace

int run_serve(const ServeOptions& options) {
  // Everything that can be wrong without the ranks is found before they are started.
  warn_of_weak_spots(options.host, options.security);
  StopSignals signals({SIGTERM, SIGINT});
  check_placement(options.engine.placement, options.engine.tensor_parallel_size);
  const std::string dir = resolve_model_dir(options.engine.model, options.engine.revision);
  const ModelConfig config = read_model_config(dir);
  ServedModel model = served_model(options, dir, config);
  check_tokenizer(options, dir);
  Tokenizer tokenizer = Tokenizer::FromCheckpoint(dir);
  ChatTemplate templates = chat_template(options, dir);
  spdlog::info("Resolved architecture: {} ({})", config.architecture_name, dir);

  EngineSupervisor engine({.engine = options.engine,
                           .step_timeout = milliseconds(static_cast<int64_t>(1000 * options.step_timeout))});
  engine.set_on_state([&signals](const EngineStatus&) { signals.wake(); });
  FrontEnd front_end(std::move(model), std::move(tokenizer), std::move(templates), engine,
                     AdmissionOptions{.max_sequences = options.max_queue,
                                      .max_running = options.engine.max_num_seqs});
  const Observability observability(
      options.observability,
      {.model_name = front_end.model_name(),
       .version = SHOAL_VERSION,
       .context_tokens = config.max_position_embeddings,
       .page_size = options.engine.page_size,
       .cache_dtype = options.engine.kv_cache_dtype,
       .prefix_caching = options.engine.enable_prefix_caching},
      front_end, engine);
  GrpcServer server({.host = options.host,
                     .port = options.port,
                     .guard = options.security.guard,
                     .tls = options.security.tls,
                     .max_message_bytes = max_message_bytes(config.max_position_embeddings),
                     .max_streams = options.max_queue + kSpareStreams,
                     .max_connection_age = std::chrono::seconds(options.security.max_connection_age)},
                    front_end);
  std::optional<Reloader> reloader;
  if (options.security.has_files()) reloader.emplace(server);
  spdlog::info("Listening on {} (NOT_SERVING until the model is loaded)", server.address());
  ServiceNotify notify;
  ProgressWatch watch(milliseconds(static_cast<int64_t>(1000 * options.step_timeout)) + kWatchdogMargin);
  if (wait_ready(engine, &watch, &notify, &signals)) {
    server.set_serving(true);
    notify.ready();
    spdlog::info("Ready: {} on {}, try: shoal chat --server {} \"Hello\"", front_end.model_name(),
                 server.address(), server.address());
    spdlog::info("The server is fired up and ready to roll!");  // SGLang's: scripts wait for it
    serve_until_signal(options, engine, &server, &front_end, &watch, &notify, &signals);
  }
  drain({server, front_end, engine, signals, notify},
        milliseconds(static_cast<int64_t>(1000 * options.drain_timeout)));
  spdlog::info("Bye");
  return 0;
}

}  // namespace shoal
