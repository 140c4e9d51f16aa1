#include "kernels/cpu/thread_pool.h"

#include <chrono>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// Longer than the serial work between two verbs of a step, far shorter than a step's distance.
constexpr std::chrono::microseconds kSpin{50};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins, then sleeps, until value differs from `old`.
template <typename T>
void wait_for_change(const std::atomic<T>& value, T old) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  SHOAL_CHECK(num_threads >= 1, "{} threads", num_threads);
  for (int worker = 1; worker < num_threads; ++worker) {
    threads_.emplace_back([this, worker] { work(worker); });
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_erased(Function function, const void* context) {
  if (threads_.empty()) {
    function(context, 0);
    return;
  }
  function_ = function;
  context_ = context;
  running_.store(static_cast<int32_t>(threads_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  function(context, 0);
  for (int32_t left; (left = running_.load(std::memory_order_acquire)) != 0;) {
    wait_for_change(running_, left);
  }
}

void ThreadPool::work(int worker) {
  for (uint32_t seen = 0;;) {
    wait_for_change(generation_, seen);
    ++seen;  // the caller waits for all workers before it advances again
    if (stop_) return;
    function_(context_, worker);
    // Only the last one can have a sleeping caller to wake.
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_all();
  }
}

}  // namespace shoal
