// Status codes of the CUDA runtime and cuBLASLt become exceptions, in one place.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/base/error.h"

namespace shoal {

// DeviceFault that names the call, the error and the device; out of memory, a lost device and a
// sticky kernel fault each say what they mean for the process.
[[noreturn]] void throw_cuda(cudaError_t error, const char* call, const char* file, int line);

}  // namespace shoal

#define SHOAL_CUDA_CHECK(call)                                                          \
  do {                                                                                  \
    const cudaError_t shoal_cuda_error = (call);                                        \
    if (shoal_cuda_error != cudaSuccess) [[unlikely]]                                   \
      ::shoal::throw_cuda(shoal_cuda_error, #call, __FILE__, __LINE__);                 \
  } while (0)
