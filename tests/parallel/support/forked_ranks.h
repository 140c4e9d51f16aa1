// Ranks as forked processes without a launcher: mpirun ends all ranks as soon as one dies, and what
// the others do then is what the tests of faults are about.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "parallel/process_group.h"

namespace shoal::test {

struct RankResult {
  std::string report;   // what the body returned, or "threw: .." for what it threw
  bool killed = false;  // by SIGKILL of its own
  bool hung = false;    // it had to be ended after kForkedLimit
};

// Generous: whatever takes as long hangs.
constexpr std::chrono::seconds kForkedLimit{60};

// Forks `size` processes that call body(control group) and waits for all of them. The caller must
// not have used CUDA or threads before. In rank order.
std::vector<RankResult> run_forked(int size, const std::function<std::string(ProcessGroup&)>& body);

}  // namespace shoal::test
