// nccl_state.h: communicators of the NCCL stand-in. For nccl*.cpp of this folder.
#pragma once

#include <nccl.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/emulated_cuda/nccl_world.h"

namespace shoal::emulated {

// What one group does on a communicator, run by the stream's thread (again at each graph launch).
struct NcclProgram {
  std::vector<NcclTransfer> sends, recvs;
  std::vector<std::shared_ptr<std::vector<std::byte>>> scratch;
  std::vector<std::function<void()>> local;  // copies and sums, after the exchange, in order
};

}  // namespace shoal::emulated

struct ncclComm {
  std::shared_ptr<shoal::emulated::NcclWorld> world;
  int device = 0;
  bool blocking = true;
  std::atomic<bool> aborted{false};
  std::mutex mutex;
  // Guarded by mutex:
  ncclResult_t state = ncclInProgress;
  std::string error;
  bool joining = true, finalizing = false;
  cudaStream_t pending_stream = nullptr;
  std::shared_ptr<shoal::emulated::NcclProgram>
      pending;  // a group that did not reach its stream yet
  int polls = 0;
};

namespace shoal::emulated {

// Notes the text for ncclGetLastError and returns the result.
ncclResult_t nccl_fail(ncclResult_t result, std::string text);
// Null for what is no communicator, or no longer one.
std::shared_ptr<ncclComm> find_nccl_comm(ncclComm_t handle);
// ncclSuccess when the next operation may come, else what such a call has to return.
ncclResult_t nccl_ready(const std::shared_ptr<ncclComm>& comm);
// Puts the program on the stream.
ncclResult_t nccl_launch(const std::shared_ptr<ncclComm>& comm, cudaStream_t stream,
                         std::shared_ptr<NcclProgram> program);
bool in_nccl_group();  // of this thread

}  // namespace shoal::emulated

#define SHOAL_NCCL_TRY(expression)           \
  do {                                       \
    const ncclResult_t tried = (expression); \
    if (tried != ncclSuccess) return tried;  \
  } while (0)
