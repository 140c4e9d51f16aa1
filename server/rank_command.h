// `shoal rank`: one rank of an engine, started by `shoal serve` (server/launcher). Loads its share of
// the model; rank 0 then schedules and serves engine.proto on a unix socket, the others run its plans.
#pragma once

#include <string>

#include "server/engine_options.h"

namespace shoal {

// Returns 0 when the front end asked for the end, or is gone. A wrong flag or file leaves it as
// InvalidInput; a fault ends all ranks.
int run_rank(const EngineOptions& options, const std::string& socket_path);

}  // namespace shoal
