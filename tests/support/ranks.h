// The world that a test binary was started in: one rank, or several under mpirun. Every rank runs the
// same test cases; only CHECK (never REQUIRE) inside what is collective, or the others wait.
// SHOAL_TEST_DEVICE=cuda runs the same tests on GPUs, or on the emulated ones.
#pragma once

#include <cstdlib>
#include <string>

#include "runtime/backend.h"

namespace shoal {

inline std::string test_device() {
  const char* device = std::getenv("SHOAL_TEST_DEVICE");
  return device == nullptr ? "cpu" : device;
}

inline RankRuntime& rank_runtime() {
  static RankRuntime rank({.device = test_device(), .num_threads = 1});
  return rank;
}

}  // namespace shoal
