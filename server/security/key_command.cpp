#include "server/security/key_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "server/security/api_keys.h"

namespace shoal {

int run_key_new(const KeyOptions& options) {
  const NewKey fresh = make_api_key(options.name);
  const bool terminal = isatty(STDERR_FILENO);
  if (terminal) fmt::print(stderr, "The key, shown this once (clients: SHOAL_API_KEY, or `authorization: Bearer`):\n");
  fmt::print(stderr, "{}\n", fresh.key);
  if (terminal && isatty(STDOUT_FILENO)) fmt::print(stderr, "The line for --api-key-file:\n");
  fmt::print("{}\n", fresh.line);
  return 0;
}

}  // namespace shoal
