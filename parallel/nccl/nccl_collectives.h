// Data plane of GPU ranks over NCCL: everything is put on the device's stream and may be recorded
// in a graph, but for all_to_all_counts, whose result the host reads.
//
// Sums: NCCL adds in an order of its own, not in rank order as collectives.h says of other back
// ends; all ranks hold the same bits of an all-reduce all the same, and a run on the same GPUs
// repeats. BF16 is rounded at each addition. Small all-reduces may take the way of PeerAllReduce,
// which adds in rank order and in F32.
//
// Failures: a call, or the next wait for the device, throws a DeviceFault that names rank, step,
// layer, collective, bytes and seconds when another rank is late or gone (watchdog.h). No call
// waits for longer than the time limit. After a fault every call throws it again; the process has
// to be restarted.
//
// Bytes sent are counted as in docs/parallelism.md: (N-1) B for an all-reduce in one round
// (PeerAllReduce up to its one-shot size), else two rounds' worth, of slices in units of 16
// elements.
#pragma once

#include <atomic>
#include <memory>

#include "kernels/cuda/cuda_device.h"
#include "parallel/collectives.h"
#include "parallel/nccl/nccl_comm.h"
#include "parallel/nccl/peer_all_reduce.h"
#include "parallel/nccl/watchdog.h"
#include "parallel/process_group.h"

namespace shoal {

struct NcclOptions {
  // Longest wait for another rank. Far above the time of any collective (a long prefill takes
  // seconds, and its ranks stay in step), far below the patience of a client.
  std::chrono::milliseconds time_limit = std::chrono::seconds(30);
  // Whether small all-reduces may go through peer memory, where the GPUs can reach each other's.
  bool peer_memory = true;
  // Largest of them. Twice this and some KB of GPU memory.
  size_t peer_buffer_bytes = size_t{8} << 20;
  // Whether NCCL gets those where it was measured to be faster; else peer memory takes all that
  // fit.
  bool measure = true;
};

class NcclCollectives final : public Collectives, private StreamObserver {
 public:
  // Collective, over all ranks of `control`, which is not used after that but for its abort().
  // Throws as NcclComm's constructor does. Device and control group must outlive it; graphs that
  // hold its collectives must end before it.
  NcclCollectives(CudaDevice& device, ProcessGroup& control, NcclOptions options = {});
  ~NcclCollectives() override;

  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  void all_reduce_sum(const Tensor& x) override;  // F32 | BF16 | I32
  // all_reduce_sum(x) and Ops::add_rms_norm(x, residual, weight, eps, out) in one kernel, if x is
  // small enough for that (false: nothing was done, on all ranks alike). x is read only.
  bool all_reduce_add_rms_norm(const Tensor& x,         // [T, hidden]
                               const Tensor& residual,  // [T, hidden]
                               const Tensor& weight,    // [hidden] F32
                               float eps,
                               const Tensor& out);  // [T, hidden]
  void all_gather_rows(const Tensor& local, std::span<const int64_t> rows,
                       const Tensor& out) override;
  void reduce_scatter_rows(const Tensor& x, std::span<const int64_t> rows,
                           const Tensor& out) override;
  void all_to_all_rows(const Tensor& send, std::span<const int64_t> send_rows, const Tensor& recv,
                       std::span<const int64_t> recv_rows) override;
  // An all-gather of N int64 per rank through device memory: one small kernel and one wait for the
  // stream, some 30 us, where the control group would sleep for up to milliseconds.
  void all_to_all_counts(std::span<const int64_t> send, std::span<int64_t> recv) override;
  void gather_rows_to_root(const Tensor& local, std::span<const int64_t> elements,
                           const Tensor& out) override;

  Watchdog& watchdog() { return watchdog_; }
  // Small all-reduces through peer memory; null when there are none (one rank, no access, not
  // wanted).
  PeerAllReduce* peer() { return peer_.get(); }

 private:
  // Collectives run one after another in the order of their calls, also when the device's streams
  // take turns (Device::beside): the ranks' order is one, and what waits for other ranks on one
  // stream can never keep what those wait for from running. An Order is made before a collective is
  // issued and ends after it.
  class Order;
  // Puts one NCCL group on the stream, noted as the collective `name`.
  void run(const char* name, int64_t bytes, const std::function<void(ncclComm_t)>& calls);
  void all_reduce_by_nccl(const Tensor& x);
  void count_all_reduce(const Tensor& x, bool one_round);
  void waited() override { watchdog_.check(); }
  void graph_launched() override { watchdog_.note_graph(position()); }
  Position position() const { return {step_, layer_}; }
  cudaStream_t stream() const { return device_.stream(); }

  const int exceptions_at_start_;
  CudaDevice& device_;
  NcclComm comm_;
  std::unique_ptr<PeerAllReduce> peer_;
  std::atomic<PeerAllReduce*> peer_to_abort_{nullptr};  // peer_, for the watchdog's thread
  Watchdog watchdog_;                                   // ends before what its thread uses
  Buffer counts_;  // [1 + N, N] I64: own counts, then everybody's
  // Behind the last collective that was not recorded in a graph, and its stream.
  std::unique_ptr<CUevent_st, decltype(&cudaEventDestroy)> last_ended_{nullptr, &cudaEventDestroy};
  cudaStream_t last_stream_ = nullptr;
};

}  // namespace shoal
