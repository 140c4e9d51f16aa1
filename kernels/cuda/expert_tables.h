#pragma once
#include "kernels/cuda/cuda_device.h"
namespace shoal {
class ExpertTables {
 public:
  explicit ExpertTables(CudaDevice& device) {}
};
}  // namespace shoal
