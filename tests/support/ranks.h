// The world that a test binary was started in: one rank, or several under mpirun. Every rank runs the
// same test cases; only CHECK (never REQUIRE) inside what is collective, or the others wait.
#pragma once

#include "runtime/backend.h"

namespace shoal {

inline RankRuntime& rank_runtime() {
  static RankRuntime rank({"cpu", 1});
  return rank;
}

}  // namespace shoal
