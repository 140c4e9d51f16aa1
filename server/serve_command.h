// `shoal serve`: the front end. Starts the ranks, answers gRPC, survives the ranks.
#pragma once

#include <string>

#include "server/engine_options.h"
#include "server/security/security_flags.h"
#include "server/observability.h"

namespace shoal {

struct ServeOptions {
  EngineOptions engine;
  ObservabilityOptions observability;
  std::string served_model_name;           // --served-model-name; empty: --model as given
  std::string host = "127.0.0.1";          // --host
  int port = 8000;                         // --port; 0: any free one
  SecurityOptions security;                // --api-key-file, --ssl-certfile, ...
  std::string chat_template;               // --chat-template: file; empty: the checkpoint's
  std::string generation_config = "auto";  // --generation-config auto|vllm (vllm: ignore the file)
  int max_queue = 1024;                    // --max-queue: sequences alive at once
  double drain_timeout = 30;         // --drain-timeout: seconds that running calls get at the end
  double stream_stall_timeout = 60;  // --stream-stall-timeout: seconds without a read
  double step_timeout = 120;         // --step-timeout: seconds of ranks with work that say nothing
};

// Returns the exit code of an orderly end. Throws InvalidInput for a bad flag or checkpoint and
// when the address cannot be listened on, DeviceFault when the engine cannot be brought up.
int run_serve(const ServeOptions& options);

}  // namespace shoal
