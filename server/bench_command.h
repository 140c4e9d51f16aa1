// `shoal bench serve`: loads a running server and says how it fared.
#pragma once

#include "server/load/load_options.h"

namespace CLI {
class App;
}

namespace shoal {

struct BenchOptions {
  BenchServeOptions serve;
};

// Adds the subcommands of `shoal bench` with their flags.
void add_bench_flags(CLI::App& app, BenchOptions& options);

// Of the subcommand that was parsed. Returns 0, or 1 when not one request was answered. Throws
// InvalidInput for a bad flag or file and when no server answers.
int run_bench(const CLI::App& app, const BenchOptions& options);

}  // namespace shoal
