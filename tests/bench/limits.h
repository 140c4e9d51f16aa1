// What this machine can do at most, measured: the yardstick that stands beside every figure.
#pragma once

#include "kernels/cpu/thread_pool.h"

namespace shoal::bench {

// What time is read from. kWall is the truth; kThread, the processor time of the calling thread,
// gives a rough reading with one thread on a machine that others are using.
enum class Clock { kWall, kThread };
double now(Clock clock);  // seconds

// Bytes per second of reading memory that is in no cache, each thread its own contiguous part, huge
// pages. Median of `repeats`.
double read_bandwidth(ThreadPool& pool, int repeats, Clock clock);

// Floating-point operations per second of independent fused multiply-adds in registers (2 per
// lane).
double fma_peak(ThreadPool& pool, int repeats, Clock clock);

}  // namespace shoal::bench
