// Collectives: the data plane. Tensors are device memory of this rank, contiguous, F32 or the
// activations' type (I32 where said).
// All ranks call the same methods in the same order with agreeing sizes; one thread calls. A lost or
// late peer throws DeviceFault. World size 1 (parallel/self) copies or does nothing: callers have no if.
//
// all_reduce_sum and reduce_scatter_rows add in rank order 0, 1, .. N-1, so that every rank holds the
// same bits and a run can be repeated. (NCCL has an order of its own; the same bits on every rank hold
// there too: parallel/nccl/nccl_collectives.h.)
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/base/tensor.h"

namespace shoal {

// What bytes between ranks are sent for.
enum class Traffic : uint8_t { kAllReduce, kAllGather, kReduceScatter, kAllToAll, kGather };
inline constexpr int kNumTraffic = static_cast<int>(Traffic::kGather) + 1;
inline constexpr std::array<std::string_view, kNumTraffic> kTrafficNames = {
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "gather"};

class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  virtual void all_reduce_sum(const Tensor& x) = 0;  // any shape, in place

  // all_reduce_sum(x) and Ops::add_rms_norm(x, residual, weight, eps, out) as one piece of work, where a
  // back end has that for tensors of this size; false, on all ranks alike: nothing was done. x is then
  // not changed. The sum is not rounded to x's type before it is added.
  virtual bool all_reduce_add_rms_norm(const Tensor& x,         // [T, hidden]
                                       const Tensor& residual,  // [T, hidden] in place
                                       const Tensor& weight,    // [hidden] F32
                                       float eps,
                                       const Tensor& out) {  // [T, hidden]
    return false;
  }

  // out = all ranks' rows in rank order. rows[r] = rows that rank r gives.
  virtual void all_gather_rows(const Tensor& local,            // [rows[rank], dim]
                               std::span<const int64_t> rows,  // size() entries
                               const Tensor& out) = 0;         // [sum of rows, dim] F32 | I32

  // out = this rank's rows of the sum over ranks of x.
  virtual void reduce_scatter_rows(const Tensor& x,                // [sum of rows, dim]
                                   std::span<const int64_t> rows,  // size() entries
                                   const Tensor& out) = 0;         // [rows[rank], dim]

  // Rank r gets the send_rows[r] rows after those of ranks before r, and so on.
  virtual void all_to_all_rows(const Tensor& send,                  // [sum of send_rows, dim]
                               std::span<const int64_t> send_rows,  // size() entries
                               const Tensor& recv,                  // [sum of recv_rows, dim]
                               std::span<const int64_t> recv_rows) = 0;

  // One count for each peer: recv[r] = what rank r had in send[rank()]. Host values.
  virtual void all_to_all_counts(std::span<const int64_t> send, std::span<int64_t> recv) = 0;

  // Rank 0 gets every rank's rows in rank order; out is read on rank 0 only.
  virtual void gather_rows_to_root(const Tensor& local,            // [rows[rank], dim_r]
                                   std::span<const int64_t> elements,  // elements that rank r gives
                                   const Tensor& out) = 0;         // [sum of elements] on rank 0

  // Makes now what the verbs will gather into, where a back end does that in memory of its own: `bytes` of
  // it, as runtime/memory has worked out.
  virtual void reserve(size_t bytes) {}

  // Where the model is, for reports of what failed: a collective that hangs is named by them.
  void at_step(uint64_t step) {
    step_ = step;
    layer_ = -1;
  }
  void at_layer(int32_t layer) { layer_ = layer; }

  // Bytes that this rank has sent since construction: what docs/parallelism.md predicts.
  int64_t bytes_sent() const { return bytes_sent_; }
  // Of those, by verb. What a recorded graph sends when it is replayed is in neither.
  const std::array<int64_t, kNumTraffic>& bytes_sent_by_verb() const { return by_verb_; }
  // That this rank has spent inside verbs, waiting for its peers included; 0 where verbs only queue work.
  double seconds() const { return seconds_; }

 protected:
  // Lives as long as a verb runs: books what it sends and, if `timed`, how long it takes.
  class Account {
   public:
    Account(Collectives& of, Traffic verb, bool timed = false)
        : of_(of), verb_(verb), timed_(timed), sent_(of.bytes_sent_) {
      if (timed) begin_ = Clock::now();
    }
    ~Account() {
      of_.by_verb_[static_cast<int>(verb_)] += of_.bytes_sent_ - sent_;
      if (timed_) of_.seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count();
    }
    Account(const Account&) = delete;

   private:
    using Clock = std::chrono::steady_clock;
    Collectives& of_;
    const Traffic verb_;
    const bool timed_;
    const int64_t sent_;
    Clock::time_point begin_;
  };

  int64_t bytes_sent_ = 0;
  std::array<int64_t, kNumTraffic> by_verb_{};
  double seconds_ = 0;
  uint64_t step_ = 0;
  int32_t layer_ = -1;  // -1: outside the layers
};

}  // namespace shoal
