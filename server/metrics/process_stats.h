// What this process takes of the machine, from /proc/self.
#pragma once

#include <cstdint>

namespace shoal {

struct ProcessStats {
  uint64_t resident_bytes = 0, virtual_bytes = 0;
  int64_t open_fds = 0, max_fds = 0, threads = 0;
  double cpu_seconds = 0;
  double start_seconds = 0;  // since 1970
};

ProcessStats process_stats();

}  // namespace shoal
