// What every bench program's main() is: an exception becomes one line and an exit code.
#pragma once

#include <cstdio>
#include <exception>

#include "kernels/base/error.h"

namespace shoal::bench {

// 2: bad input (a flag, a file, a machine that is too small), 1: anything else.
inline int run_main(const char* program, int argc, char** argv, int (*run)(int, char**)) {
  try {
    return run(argc, argv);
  } catch (const InvalidInput& error) {
    std::fprintf(stderr, "%s: %s\n", program, error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", program, error.what());
    return 1;
  }
}

}  // namespace shoal::bench
