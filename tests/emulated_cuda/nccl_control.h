// nccl_control.h: what tests do to the NCCL stand-in of this process.
#pragma once

#include <cstdint>

namespace shoal::emulated {

enum class NcclFault {
  kNone,
  kDie,    // SIGKILL: the process is gone, without a word to anybody
  kStall,  // alive, but takes no part any more, until the communicator is aborted
  kLate,   // a tenth of a second late, in this group and in all that follow
};
// The fault happens inside the n-th group of collectives that a stream of this process runs from
// now on (0: the next), before any byte of it is sent.
void inject_nccl_fault(NcclFault fault, int64_t n);

// What ncclGetVersion answers; 0: that of the header.
void set_nccl_version(int version);

}  // namespace shoal::emulated
