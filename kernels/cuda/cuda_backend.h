// The CUDA back end: factories. Everything else of this folder is internal, but for parallel/nccl,
// which works on the same device (cuda_device.h).
#pragma once

#include <memory>
#include <string>

#include "kernels/base/device.h"
#include "kernels/device_sampler.h"
#include "kernels/ops.h"

namespace shoal {

class CudaDevice;

// GPUs that this process sees; 0 without a driver. Never throws.
int cuda_device_count();

// "cuda: 2 devices (NVIDIA H100 80GB HBM3, sm_90), driver 13.0" or what is missing, in one line.
std::string cuda_summary();

// Throws InvalidInput as CudaDevice's constructor says.
std::unique_ptr<CudaDevice> make_cuda_device(int index);

// All verbs, on the device's stream. Activations F32 or BF16, all of one call alike unless a verb's
// contract says otherwise (docs/kernels.md). The device must outlive it.
// gemm_cache: a file of timed cuBLASLt algorithms. It is used if it is this GPU's and this library's;
// otherwise the products that run before end_warm_up() are timed, and it is written. "" for the library's
// own choice.
std::unique_ptr<Ops> make_cuda_ops(CudaDevice& device, const std::string& gemm_cache = "");

// The device must outlive it.
std::unique_ptr<DeviceSampler> make_cuda_sampler(CudaDevice& device);

}  // namespace shoal
