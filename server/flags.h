// The command line: names, help and ranges of every flag, and their environment twins SHOAL_<NAME>.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "server/chat_command.h"
#include "server/collect_env_command.h"
#include "server/engine_options.h"
#include "server/health_command.h"
#include "server/inspect_command.h"
#include "server/logits_command.h"
#include "server/perplexity_command.h"
#include "server/quantize_command.h"
#include "server/plan_command.h"
#include "server/serve_command.h"
#include "server/top_command.h"

namespace shoal {

void add_engine_flags(CLI::App& app, EngineOptions& options);
void add_serve_flags(CLI::App& app, ServeOptions& options);
// Where ranks run; for commands that serve.
void add_placement_flags(CLI::App& app, RankPlacement& placement);
void add_health_flags(CLI::App& app, HealthOptions& options);
void add_chat_flags(CLI::App& app, ChatOptions& options);
void add_logits_flags(CLI::App& app, LogitsOptions& options);
void add_perplexity_flags(CLI::App& app, PerplexityOptions& options);
void add_quantize_flags(CLI::App& app, QuantizeCommandOptions& options);
void add_inspect_flags(CLI::App& app, InspectOptions& options);
void add_plan_flags(CLI::App& app, PlanCommandOptions& options);
void add_top_flags(CLI::App& app, TopOptions& options);
void add_collect_env_flags(CLI::App& app, CollectEnvOptions& options);

// Gives every flag of `app` and its subcommands the variable SHOAL_<NAME>; a flag wins over it.
void add_environment_twins(CLI::App& app);
// Variables SHOAL_* that no flag reads: a typing error, or another version's.
std::vector<std::string> unknown_environment(const CLI::App& app);

// What was given by flag or environment, "--name=value" each, secrets masked.
std::vector<std::string> non_default_args(const CLI::App& command);
// Every flag with its value in force, one a line, as a shell would take it back; secrets masked.
std::string print_config(const CLI::App& command);

// Names as people type them: --max_model_len becomes --max-model-len, -tp becomes
// --tensor-parallel-size. Values are left alone.
std::vector<std::string> normalise_args(int argc, const char* const* argv);

}  // namespace shoal
