// The CPU back end: factories. Everything else of this folder is internal.
#pragma once

#include <memory>
#include <string>

#include "kernels/base/device.h"
#include "kernels/ops.h"

namespace shoal {

// Host memory. Allocations of 2 MiB and more ask for huge pages: with 4 KiB pages a core reads
// weights at up to half the bandwidth. Thread-safe.
std::unique_ptr<Device> make_cpu_device();

// All verbs on num_threads threads, the caller's among them. Results do not depend on num_threads.
std::unique_ptr<Ops> make_cpu_ops(int num_threads);

// The instruction set that the verbs run with on this machine: "AVX3", "AVX2", "NEON", ...
std::string cpu_target_name();

}  // namespace shoal
