#include "tests/bench/limits.h"

#include <time.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/cpu_backend.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/limits.cpp"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::bench {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

float sum_floats(const float* data, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto a = hn::Zero(d), b = a, c = a, e = a;
  for (int64_t i = 0; i + 4 * lanes <= n; i += 4 * lanes) {
    a = hn::Add(a, hn::LoadU(d, data + i));
    b = hn::Add(b, hn::LoadU(d, data + i + lanes));
    c = hn::Add(c, hn::LoadU(d, data + i + 2 * lanes));
    e = hn::Add(e, hn::LoadU(d, data + i + 3 * lanes));
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e))));
}

// Ten chains: more than latency (4) x throughput (2 per cycle), fewer than any register file.
int64_t multiply_add(int64_t rounds, float* result) {
  const hn::ScalableTag<float> d;
  const auto factor = hn::Set(d, 0.999f), term = hn::Set(d, 0.001f);
  auto a = hn::Set(d, *result), b = hn::Add(a, term), c = hn::Add(b, term), e = hn::Add(c, term);
  auto f = hn::Add(e, term), g = hn::Add(f, term), h = hn::Add(g, term), i = hn::Add(h, term);
  auto j = hn::Add(i, term), k = hn::Add(j, term);
  for (int64_t r = 0; r < rounds; ++r) {
    a = hn::MulAdd(a, factor, term);
    b = hn::MulAdd(b, factor, term);
    c = hn::MulAdd(c, factor, term);
    e = hn::MulAdd(e, factor, term);
    f = hn::MulAdd(f, factor, term);
    g = hn::MulAdd(g, factor, term);
    h = hn::MulAdd(h, factor, term);
    i = hn::MulAdd(i, factor, term);
    j = hn::MulAdd(j, factor, term);
    k = hn::MulAdd(k, factor, term);
  }
  a = hn::Add(hn::Add(hn::Add(a, b), hn::Add(c, e)), hn::Add(hn::Add(f, g), hn::Add(h, i)));
  *result = hn::GetLane(hn::SumOfLanes(d, hn::Add(a, hn::Add(j, k))));
  return rounds * 10 * 2 * static_cast<int64_t>(hn::Lanes(d));
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::bench {

HWY_EXPORT(sum_floats);
HWY_EXPORT(multiply_add);

namespace {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

double now(Clock clock) {
  timespec time{};
  clock_gettime(clock == Clock::kWall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double read_bandwidth(ThreadPool& pool, int repeats, Clock clock) {
  constexpr int64_t kBytes = int64_t{512} << 20;  // many times any cache
  const std::unique_ptr<Device> device = make_cpu_device();
  const Buffer buffer = device->allocate(kBytes);
  auto* data = static_cast<float*>(buffer.data());
  constexpr int64_t kFloats = kBytes / 4;
  std::memset(data, 0, kBytes);
  std::vector<float> sinks(pool.num_threads() * 16);
  std::vector<double> rates;
  for (int r = 0; r < repeats; ++r) {
    const double start = now(clock);
    pool.parallel_for(kFloats, 1, [&](int64_t begin, int64_t end, int worker) {
      sinks[worker * 16] += HWY_DYNAMIC_DISPATCH(sum_floats)(data + begin, end - begin);
    });
    rates.push_back(kBytes / (now(clock) - start));
  }
  return median(rates);
}

double fma_peak(ThreadPool& pool, int repeats, Clock clock) {
  std::vector<float> sinks(pool.num_threads() * 16, 1.0f);
  std::vector<int64_t> flops(pool.num_threads() * 8);
  std::vector<double> rates;
  for (int r = 0; r < repeats; ++r) {
    const double start = now(clock);
    pool.run([&](int worker) {
      flops[worker * 8] = HWY_DYNAMIC_DISPATCH(multiply_add)(2000000, &sinks[worker * 16]);
    });
    const double seconds = (now(clock) - start);
    double total = 0;
    for (const int64_t f : flops) total += static_cast<double>(f);
    rates.push_back(total / seconds);
  }
  return median(rates);
}

}  // namespace shoal::bench
#endif  // HWY_ONCE
