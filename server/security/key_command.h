// `shoal key new`: a fresh API key.
#pragma once

#include <string>

namespace shoal {

struct KeyOptions {
  std::string name;  // --name
};

// The key goes to stderr, once and nowhere else, its line for --api-key-file to stdout, so that
// `shoal key new --name me >> keys` does what it looks like. Throws InvalidInput for a bad name.
int run_key_new(const KeyOptions& options);

}  // namespace shoal
