#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gpu.h"
namespace shoal {
void CudaOps::gqa_attention(const Tensor&, const Tensor&, const Tensor&, const PagedBatch&, const HeadMap&, float, const Tensor&) { SHOAL_CHECK(false, "not written yet"); }
}  // namespace shoal
