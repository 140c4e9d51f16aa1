// mla_decode: MLA in the absorbed form over the paged latent cache.
//
// A cache row (kv_lora + qk_rope, 1,152 bytes in V2 and V3) is key and value of all heads. Per row and
// head 2 * (576 + 512) FLOPs, so with 16 heads 30 FLOPs per byte: bound by memory, and what counts is
// that each row comes in once. See attention_fma.cuh, split_kv.cu.
#include "kernels/cuda/attention_paged.cuh"
#include "kernels/cuda/cuda_ops.h"

namespace shoal {

void CudaOps::mla_decode(const Tensor& q, const Tensor& cache, const PagedBatch& batch,
                         float softmax_scale, const Tensor& out) {
  check_activation(q, 3, "q");
  check_activation(out, 3, "out");
  SHOAL_CHECK(cache.rank == 2 && cache.stride[1] == 1 && cache.dim(1) == q.dim(2) &&
                  (cache.dtype == DType::kF32 || cache.dtype == DType::kBF16) &&
                  out.dtype == q.dtype && out.dim(0) == q.dim(0) && out.dim(1) == q.dim(1) &&
                  out.dim(2) <= q.dim(2),
              "q {}, cache {}, out {}", q.shape_string(), cache.shape_string(), out.shape_string());
  gpu::check_batch(batch);
  if (out.num_elements() == 0 || batch.context_len.num_elements() == 0) return;

  gpu::PagedCall call{};
  call.q = q.data;
  call.k = call.v = cache.data;
  call.out = out.data;
  call.q_token = q.stride[0];
  call.q_head = q.stride[1];
  call.k_slot = call.v_slot = cache.stride[0];
  call.out_token = out.stride[0];
  call.out_head = out.stride[1];
  call.num_heads = call.group = static_cast<int32_t>(q.dim(1));
  call.d = static_cast<int32_t>(q.dim(2));
  call.dv = static_cast<int32_t>(out.dim(2));
  call.kv_heads = 1;
  call.scale = softmax_scale * gpu::kLog2e;
  call.pages = gpu::page_table(batch);
  gpu::run_paged_fma<true>(call, batch, q.dim(0), q.dtype, cache.dtype, device_, scratch_);
}

}  // namespace shoal
