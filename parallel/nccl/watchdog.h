// Watchdog: notices a collective that does not end, because another rank died, hangs or is late,
// and turns it into one DeviceFault that says which.
//
// Whoever puts a collective (or a graph that holds some) on the device's stream does it inside a
// Scope: what it is goes into a list, and an event behind it tells when it has ended. A thread
// looks at the oldest one; it sleeps while there is none. When that one has had the stream for
// longer than the time limit, when NCCL reports an error, or when peer_lost() is called, the
// watchdog runs `abort`, which must free the stream without the other ranks' help. The owner's
// thread, which waits for the stream or comes with its next collective, then gets the DeviceFault
// from check().
//
// Of a recorded graph the host sees the whole only. So that a report can name the collective in it
// all the same, each collective that is recorded writes a number of its own to a word of host
// memory when it begins: by a kernel of one thread before it (2 us), or by its own kernel where
// that is ours.
//
// Should the stream not be free `grace` after the abort, `last_resort` is called, which ends the
// process: there is no other way out of a driver call that does not return. Such a call may also be
// the thread's own look: a launch that waits for room in a stream that hangs can hold the driver's
// locks. So a second thread, which asks neither driver nor NCCL, watches the first one.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/cuda_device.h"

namespace shoal {

// Where in the model a collective belongs.
struct Position {
  uint64_t step = 0;
  int32_t layer = -1;  // -1: outside the layers
};

class Watchdog {
 public:
  struct Hooks {
    std::function<ncclResult_t()> async_error;            // any thread
    std::function<void()> abort;                          // any thread; called once
    std::function<void(const std::string&)> last_resort;  // does not return
  };

  Watchdog(CudaDevice& device, int rank, int size, std::chrono::milliseconds time_limit,
           Hooks hooks, std::chrono::milliseconds grace = std::chrono::seconds(20));
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;

  // Throws the DeviceFault, if there is one. Any thread.
  void check() const;
  // The control plane knows that a rank is gone. Any thread.
  void peer_lost(const std::string& what);
  // Records the fault unless there is one, aborts, and throws. Any thread.
  [[noreturn]] void fail(const std::string& what);

  // Who writes a recorded collective's number.
  enum class Mark { kKernelBefore, kCollective };

  // Notes what is put on the stream between its construction and its end: the collective `name`,
  // or, after its launch, a graph.
  class Scope {
   public:
    Scope(Watchdog& watchdog, const char* name, int64_t bytes, Position position,
          Mark mark = Mark::kKernelBefore);
    ~Scope();
    Scope(const Scope&) = delete;
    // "rank 1 of 4: all_reduce_sum of 28672 bytes (collective 57, step 12, layer 3)"
    std::string description() const;
    // What the collective writes to progress_word(), if it is Mark::kCollective; 0: nothing.
    uint32_t number_in_graph() const { return number_in_graph_; }

   private:
    Watchdog& watchdog_;
    const char* name_;
    int64_t bytes_;
    Position position_;
    int64_t number_;
    uint32_t number_in_graph_ = 0;
  };
  // A recorded graph was launched.
  void note_graph(Position position);
  uint32_t* progress_word() const { return progress_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Entry {
    std::string what;
    Clock::time_point issued;
    bool graph = false;
    cudaEvent_t ended = nullptr;
  };

  void watch();
  void guard();
  // What may not return, done while guard() looks on. The caller does not hold mutex_.
  template <typename Call>
  auto guarded(const Call& call);
  // Looks at the oldest entry; the reason to abort, or "".
  std::string look();
  std::string describe(const Entry& entry) const;  // the caller holds mutex_
  void trip(const std::string& reason);
  void note(std::string what, bool graph);
  cudaEvent_t take_event();

  CudaDevice& device_;
  const int rank_, size_;
  const std::chrono::milliseconds time_limit_, grace_;
  const Hooks hooks_;
  uint32_t* progress_ = nullptr;  // pinned host memory that the device writes
  int64_t next_number_ = 0;       // the owner's thread only

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_:
  std::deque<Entry> entries_;  // on the stream and not known to have ended, oldest first
  std::vector<cudaEvent_t> spare_events_;
  std::vector<std::string> recorded_;  // collectives of all graphs, by number - 1
  Clock::time_point free_since_{};     // when the entry before the oldest ended
  std::string fault_;                  // "" while all is well
  Clock::time_point away_since_{};     // the watching thread is in a call since then; 0: it is not
  bool ending_ = false, guard_ending_ = false;

  std::thread thread_, guard_thread_;
};

// Writes `number` to `word` when the stream comes there.
void launch_mark(uint32_t* word, uint32_t number, cudaStream_t stream);

}  // namespace shoal
