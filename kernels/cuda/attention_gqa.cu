// gqa_attention: grouped-query attention over paged K and V, prefill and decode alike.
//
// See attention_fma.cuh, split_kv.cu.
#include "kernels/cuda/attention_paged.cuh"
#include "kernels/cuda/cuda_ops.h"

namespace shoal {

void CudaOps::gqa_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                            const PagedBatch& batch, const HeadMap& heads, float softmax_scale,
                            const Tensor& out) {
  check_activation(q, 3, "q");
  check_activation(out, 3, "out");
  const int64_t dim = q.dim(2);
  const auto is_cache = [](const Tensor& cache) {
    return cache.rank == 2 && cache.stride[1] == 1 &&
           (cache.dtype == DType::kF32 || cache.dtype == DType::kBF16);
  };
  SHOAL_CHECK(is_cache(k_cache) && is_cache(v_cache) && k_cache.dtype == v_cache.dtype &&
                  k_cache.dim(1) == v_cache.dim(1) && dim > 0 && k_cache.dim(1) % dim == 0 &&
                  out.shape == q.shape && out.dtype == q.dtype,
              "q {}, k_cache {}, v_cache {}, out {}", q.shape_string(), k_cache.shape_string(),
              v_cache.shape_string(), out.shape_string());
  const int64_t kv_heads = k_cache.dim(1) / dim;
  SHOAL_CHECK(
      heads.group >= 1 && heads.first_q_head / heads.group >= heads.first_kv_head &&
          (heads.first_q_head + q.dim(1) - 1) / heads.group - heads.first_kv_head < kv_heads,
      "{} heads from {}, {} KV heads from {}, group {}", q.dim(1), heads.first_q_head, kv_heads,
      heads.first_kv_head, heads.group);
  gpu::check_batch(batch);
  if (q.num_elements() == 0 || batch.context_len.num_elements() == 0) return;

  gpu::PagedCall call{};
  call.q = q.data;
  call.k = k_cache.data;
  call.v = v_cache.data;
  call.out = out.data;
  call.q_token = q.stride[0];
  call.q_head = q.stride[1];
  call.k_slot = k_cache.stride[0];
  call.v_slot = v_cache.stride[0];
  call.out_token = out.stride[0];
  call.out_head = out.stride[1];
  call.num_heads = static_cast<int32_t>(q.dim(1));
  call.d = call.dv = static_cast<int32_t>(dim);
  call.group = heads.group;
  call.first_q_head = heads.first_q_head;
  call.first_kv_head = heads.first_kv_head;
  call.kv_heads = static_cast<int32_t>(kv_heads);
  call.scale = softmax_scale * gpu::kLog2e;
  call.pages = gpu::page_table(batch);
  gpu::run_paged_fma<false>(call, batch, q.dim(0), q.dtype, k_cache.dtype, device_, scratch_);
}

}  // namespace shoal
