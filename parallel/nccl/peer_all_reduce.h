// PeerAllReduce: all-reduce of small tensors over memory that the GPUs of one node read of each
// other directly. NCCL's rings and trees take several hops of some microseconds each, which is most
// of the time of a decode step's 14 KB to 1 MB; these kernels take one hop (one-shot) or two
// (two-shot):
//   one-shot  every rank reads every other rank's whole tensor: (N-1) B read per rank
//   two-shot  every rank sums its own slice, then reads the others' sums: 2 B (N-1) / N read per
//   rank
// Sums are made in F32, in rank order 0, 1, .. N-1, and rounded once: all ranks hold the same bits,
// those of collectives.h. The fused form goes on to add the residual and normalise, without another
// pass.
//
// All kernels are put on the device's stream and may be recorded in a graph: how often they met is
// counted in device memory. A kernel that waits for a rank that is gone ends when abort() is
// called, or after its own limit; the tensor then holds garbage, and expired() or the caller's
// watchdog tells.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/cuda/cuda_device.h"
#include "parallel/process_group.h"

namespace shoal {

constexpr int kMaxPeers = 8;  // GPUs of a node that reach each other

// What the kernels get, by value.
struct PeerMemory {
  std::byte* data[kMaxPeers];  // each rank's two buffers
  uint32_t* flags[kMaxPeers];  // each rank's [2 meetings, kMaxBlocks, kMaxPeers]
  uint32_t* epoch;       // [2] this rank's: launches so far, blocks of this launch that are done
  const uint32_t* stop;  // in host memory: not 0 once aborted
  uint32_t* expired;     // in host memory: set by a kernel that waited for longer than limit_ns
  uint32_t* progress;    // in host memory: gets `number` when the kernel begins, unless that is 0
  uint32_t number;
  uint64_t limit_ns;
  size_t buffer_bytes;
  int rank, size;
};

class PeerAllReduce {
 public:
  enum class Way : uint8_t { kOneShot, kTwoShot, kNccl };

  // Collective. Null on all ranks, with a line in the log that says why, where one of them cannot
  // reach another's memory: several nodes, no peer access, more than kMaxPeers ranks; and for one
  // rank. A kernel gives up after `time_limit`, in case nobody calls abort().
  static std::unique_ptr<PeerAllReduce> make(CudaDevice& device, ProcessGroup& control,
                                             size_t buffer_bytes,
                                             std::chrono::milliseconds time_limit);
  // The other ranks must have called disconnect(), or all of them have failed.
  ~PeerAllReduce();
  PeerAllReduce(const PeerAllReduce&) = delete;
  // Closes the others' memory, which they may free only after that (cudaIpcCloseMemHandle). The
  // device must have ended the kernels; none may follow.
  void disconnect();

  // Whether x can go this way: F32 or BF16, contiguous, and no larger than the buffer.
  bool takes(const Tensor& x) const;
  // REQUIRES: takes(x). In place; x of any shape.
  void one_shot(const Tensor& x);
  void two_shot(const Tensor& x);
  // residual += the sum of x over the ranks, then out = rms_norm(residual): Ops::add_rms_norm
  // without the all-reduce before it. x is read only. Rows may be strided; x, residual and out of
  // one type.
  bool takes_rows(const Tensor& x) const;
  void add_rms_norm(const Tensor& x,         // [T, hidden]
                    const Tensor& residual,  // [T, hidden]
                    const Tensor& weight,    // [hidden] F32
                    float eps,
                    const Tensor& out);  // [T, hidden]

  // What the kernels launched from now on write to `word` (Watchdog::progress_word()); 0: nothing.
  void number_next(uint32_t* word, uint32_t number);

  // Collective. Times all ways at a few sizes, `nccl` being the other one, and agrees on the
  // fastest of each: the slowest rank's median counts. Logs the table as one line.
  void measure(ProcessGroup& control, const std::function<void(const Tensor&)>& nccl);
  // The way for a tensor of so many bytes, the same on all ranks. One-shot before measure().
  Way way_for(int64_t bytes) const;
  // "16 KiB: one-shot 7.1 us, two-shot 9.8 us, NCCL 14.0 us; .."
  const std::string& table() const { return table_; }

  void abort();  // any thread
  bool expired() const;

 private:
  struct Row {  // of the table: up to so many bytes, this way
    int64_t bytes;
    Way way;
  };
  PeerAllReduce(CudaDevice& device, int rank, int size, size_t buffer_bytes,
                std::chrono::milliseconds time_limit);
  bool connect(ProcessGroup& control);
  bool works(ProcessGroup& control);

  CudaDevice& device_;
  PeerMemory memory_{};
  std::byte* own_ = nullptr;        // exported to the others
  uint32_t* host_words_ = nullptr;  // [2] pinned: stop, expired
  std::vector<void*> opened_;       // the others' memory
  std::vector<Row> rows_;           // by bytes, ascending
  std::string table_;
};

}  // namespace shoal
