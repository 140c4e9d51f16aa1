// block.h: runs the blocks of a grid, one after another, on the calling OS thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>

namespace shoal::emulated {

struct Launch {
  const void* kernel;  // for reports
  dim3 grid, block;
  size_t dynamic_smem;
  std::function<void()> thread_body;
};

// What ended a kernel. what() is the report.
struct KernelFault : std::runtime_error {
  KernelFault(cudaError_t code, const std::string& report)
      : std::runtime_error(report), error(code) {}
  cudaError_t error;
};

// Throws KernelFault: a deadlock, an exception or a bad access of the kernel; the rest of the grid then
// does not run.
void run_grid(const Launch& launch, unsigned thread_order_seed);

// "name" of the function at an address, as far as it can be found.
std::string function_name(const void* function);

}  // namespace shoal::emulated
