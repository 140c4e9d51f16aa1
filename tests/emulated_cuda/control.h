// control.h: what tests do to the emulated devices. Process-wide; call while no work is under way.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shoal::emulated {

// Permutes the order in which the threads of a block start (0: ascending), and runs the blocks of a grid
// backwards when it is odd. A kernel that lacks a barrier gives another result in some order.
// The environment's SHOAL_EMULATED_SEED is the value at the start.
void set_thread_order_seed(unsigned seed);

// The n-th cudaMalloc from now on (0: the next) fails with cudaErrorMemoryAllocation, once. -1: none.
void fail_allocation_after(int64_t n);

// The n-th kernel that runs from now on (0: the next) fails with cudaErrorLaunchFailure instead, which is
// sticky: its device is lost until reset(). -1: none.
void fail_kernel_after(int64_t n);

// Whether the binary has images of its kernels for the devices' architecture. Without, whoever asks for a
// kernel or launches one gets cudaErrorNoKernelImageForDevice.
void set_kernel_images(bool present);

// Every piece of work of every stream first sleeps a random time of up to `microseconds`, so that a
// missing synchronisation between streams or with the host shows. 0: none.
void set_stream_delays(unsigned seed, int microseconds);

// What has begun since the last call (or, at the first, since it), in that order, of all devices of this
// process: the names of kernels, and "NCCL group begins" and "NCCL group ends".
std::vector<std::string> take_trace();

// Undoes all of the above and revives faulted devices; their memory stays.
void reset();

}  // namespace shoal::emulated
