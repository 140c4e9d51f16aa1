// ThreadPool: the cores of one rank, working on one call at a time.
// The caller is worker 0; the others spin for about 50 us after a job (the next verb of a step
// comes within that time) and then sleep in the kernel, so that an idle pool costs nothing. One
// thread calls run(); jobs must not throw and must not call run().
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace shoal {

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);  // including the caller; 1 starts no thread
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls job(worker) once for each worker in [0, num_threads()), in parallel.
  template <typename Job>
  void run(const Job& job) {
    run_erased([](const void* context, int worker) { (*static_cast<const Job*>(context))(worker); },
               &job);
  }

  // Splits [0, n) into at most num_threads() contiguous ranges of at least `grain` items and calls
  // body(begin, end, worker) for each. Ranges depend only on n, grain and the number of threads.
  template <typename Body>
  void parallel_for(int64_t n, int64_t grain, const Body& body) {
    if (n <= 0) return;
    const int64_t most = (n + grain - 1) / grain;
    const int64_t parts = most < num_threads() ? most : num_threads();
    if (parts == 1) {
      body(int64_t{0}, n, 0);
      return;
    }
    run([&](int worker) {
      if (worker < parts) body(n * worker / parts, n * (worker + 1) / parts, worker);
    });
  }

 private:
  using Function = void (*)(const void* context, int worker);
  void run_erased(Function function, const void* context);
  void work(int worker);

  // Written by the caller before it advances generation_, read by workers after they saw that.
  Function function_ = nullptr;
  const void* context_ = nullptr;
  bool stop_ = false;

  // Apart, so that workers that spin on one do not slow those that count down the other.
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int32_t> running_{0};
  std::vector<std::thread> threads_;
};

}  // namespace shoal
