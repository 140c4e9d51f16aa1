#include "kernels/cuda/cuda_check.h"

namespace shoal {

void throw_cuda(cudaError_t error, const char* call, const char* file, int line) {
  int device = -1;
  cudaGetDevice(&device);
  const char* meaning = "";
  switch (error) {
    case cudaErrorMemoryAllocation:
      meaning = "; the GPU has no memory left: lower --gpu-memory-utilization or --max-num-seqs, or "
                "free what other processes hold (nvidia-smi)";
      break;
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorLaunchFailure:
      meaning = "; a kernel failed: the process cannot use this GPU any more and must be restarted";
      break;
    case cudaErrorNoKernelImageForDevice:
      meaning = "; this binary was built for other GPUs: build with -DCMAKE_CUDA_ARCHITECTURES of this "
                "one";
      break;
    default: break;
  }
  cudaGetLastError();  // an error that is not sticky must not be reported again by the next launch
  throw DeviceFault(fmt::format("cuda device {}: {} ({}) from {} at {}:{}{}", device,
                                cudaGetErrorString(error), cudaGetErrorName(error), call, file, line,
                                meaning));
}

}  // namespace shoal
