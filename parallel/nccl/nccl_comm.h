// NcclComm: one communicator over all ranks of a control group, created and used without ever
// blocking inside NCCL, so that a rank that is late or gone is noticed by a clock of ours.
//
// Before NCCL is asked for anything, the ranks tell each other their NCCL version and their GPU
// over the control group: versions that differ, or two ranks on one GPU, are one InvalidInput with
// the same text on all ranks.
#pragma once

#include <nccl.h>

#include <chrono>
#include <functional>
#include <mutex>

#include "kernels/cuda/cuda_device.h"
#include "parallel/process_group.h"

namespace shoal {

class NcclComm {
 public:
  // Collective. Throws InvalidInput as said above, DeviceFault (on all ranks) when a rank cannot
  // join within `time_limit`.
  NcclComm(CudaDevice& device, ProcessGroup& control, std::chrono::milliseconds time_limit);
  // Waits for the other ranks to end it too, some seconds at most; aborts what is left.
  ~NcclComm();
  NcclComm(const NcclComm&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Runs `calls`, which makes NCCL calls on the communicator, as one NCCL group, and returns when
  // NCCL has put the group on the stream. The owner's thread only. Throws DeviceFault: NCCL
  // refused, did not take it within the time limit, or the communicator was aborted.
  void issue(const std::function<void(ncclComm_t)>& calls);

  // Any thread. What NCCL says of the communicator: ncclSuccess, ncclInProgress (also while another
  // thread is inside NCCL), or what has failed. Never waits.
  ncclResult_t async_error();
  // Any thread; once aborted, further calls do nothing. Ends what is on the stream, so that the
  // stream goes on, without waiting for other ranks. Gives up, with a line in the log, when another
  // thread does not leave NCCL: a launch waits while the stream's queue is full, and that it is
  // when the GPU waits for a rank that is gone.
  void abort();

 private:
  void join(CudaDevice& device, ProcessGroup& control);
  // Polls until NCCL is done with what it was last asked; false when that takes longer than the
  // limit.
  bool settle(ncclResult_t& result);

  int rank_;
  int size_;
  std::chrono::milliseconds time_limit_;
  std::mutex mutex_;           // NCCL allows one thread at a time inside a communicator
  ncclComm_t comm_ = nullptr;  // guarded by mutex_; null before joining and once aborted
};

// Throws DeviceFault that names the call unless the result is ncclSuccess or ncclInProgress.
void check_nccl(ncclResult_t result, const char* call);

}  // namespace shoal
