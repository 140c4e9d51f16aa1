#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gpu.h"
namespace shoal {
void CudaOps::mla_decode(const Tensor&, const Tensor&, const PagedBatch&, float, const Tensor&) { SHOAL_CHECK(false, "not written yet"); }
void CudaOps::mla_prefill(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, float, const AttentionState&) { SHOAL_CHECK(false, "not written yet"); }
void CudaOps::begin_state(const AttentionState&) { SHOAL_CHECK(false, "not written yet"); }
void CudaOps::finish_state(const AttentionState&, const Tensor&) { SHOAL_CHECK(false, "not written yet"); }
}  // namespace shoal
