#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gpu.h"
namespace shoal {
void CudaOps::grouped_linear(const Tensor&, std::span<const Weight>, const Tensor&, const Tensor&) { SHOAL_CHECK(false, "not written yet"); }
}  // namespace shoal
