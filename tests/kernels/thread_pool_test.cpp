#include "kernels/cpu/thread_pool.h"

#include <time.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <numeric>
#include <thread>

namespace shoal {

TEST_CASE("thread pool: every index once, in ranges of at least the grain", "[pool]") {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.num_threads() == threads);
    for (const int64_t n : {0, 1, 2, 7, 100, 1000}) {
      for (const int64_t grain : {1, 3, 64}) {
        std::vector<int> seen(n, 0);
        std::vector<int64_t> sizes(threads, 0);
        pool.parallel_for(n, grain, [&](int64_t begin, int64_t end, int worker) {
          for (int64_t i = begin; i < end; ++i) ++seen[i];
          sizes[worker] += end - begin;
        });
        CHECK(std::all_of(seen.begin(), seen.end(), [](int c) { return c == 1; }));
        CHECK(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}) == n);
        CHECK((n < 2 * grain || threads == 1 || sizes[0] < n));
      }
    }
  }
}

TEST_CASE("thread pool: many jobs in a row, asleep or awake, all see their data", "[pool]") {
  ThreadPool pool(3);
  std::vector<int64_t> counts(3, 0);
  for (int job = 0; job < 3000; ++job) {
    pool.run([&](int worker) { counts[worker] += job; });
    if (job % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  const int64_t expected = int64_t{3000} * 2999 / 2;
  CHECK(counts == std::vector<int64_t>(3, expected));
}

TEST_CASE("thread pool: an idle pool uses no processor", "[pool]") {
  ThreadPool pool(4);
  pool.run([](int) {});
  const auto cpu_seconds = [] {
    timespec used{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
  };
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  // Four threads that spun would use up to 0.8 s; the spin itself is 50 us each. Processor time,
  // not wall time, so a busy machine does not matter.
  CHECK(cpu_seconds() - before < 0.02);
}

}  // namespace shoal
