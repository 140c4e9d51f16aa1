// OffloadStats: what experts that are not on the device have cost so far, on one rank.
#pragma once

#include <cstdint>

namespace shoal {

struct OffloadStats {
  int64_t experts_on_device = 0, experts_on_host = 0, experts_on_disk = 0;
  // Since start. An expert's bytes count once for each step and layer that uses it.
  uint64_t bytes_streamed = 0;     // to the device
  uint64_t bytes_read_by_cpu = 0;  // of experts that the CPU multiplied with
  uint64_t bytes_from_disk =
      0;  // read from files; each of these is also one of the two above, or moved
  uint64_t rows_on_host = 0, rows_streamed = 0;
  uint64_t moves = 0, bytes_moved = 0;  // changes of homes
};

}  // namespace shoal
