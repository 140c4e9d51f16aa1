// `shoal collect-env`: what a bug report should say of this build and machine. Secrets are masked.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace shoal {

struct CollectEnvOptions {
  bool json = false;  // --json
};

int run_collect_env(const CollectEnvOptions& options);

struct EnvSection {
  std::string name;
  std::vector<std::pair<std::string, std::string>> entries;
};
// Takes a second where there are GPUs.
std::vector<EnvSection> collect_env();
// Of `environment` ("NAME=value") what bears on a server; values of names that sound secret are masked.
EnvSection relevant_environment(const std::vector<std::string>& environment);

}  // namespace shoal
