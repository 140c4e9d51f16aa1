#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gpu.h"
namespace shoal {
void CudaOps::rms_norm(const Tensor&, const Tensor&, float, const Tensor&) { SHOAL_CHECK(false, "not written yet"); }
void CudaOps::add_rms_norm(const Tensor&, const Tensor&, const Tensor&, float, const Tensor&) { SHOAL_CHECK(false, "not written yet"); }
}  // namespace shoal
