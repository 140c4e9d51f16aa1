#pragma once
#include "kernels/cuda/cuda_device.h"
namespace shoal {
class CublasLt {
 public:
  explicit CublasLt(CudaDevice& device) {}
};
}  // namespace shoal
