// The host side that mla_decode and gqa_attention share: one call in the plain form, cut, run,
// combined.
#pragma once

#include "kernels/cuda/attention_fma.cuh"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/split_kv.cuh"

namespace shoal::gpu {

// How many blocks of so much shared memory the device holds at once, when registers allow.
inline int64_t blocks_at_once(const CudaDevice& device, size_t smem) {
  constexpr size_t kReserved = 1024;  // of each block, by the driver
  constexpr size_t kMost = 4;         // more parts than that only cost more combining
  const size_t per_sm = (device.max_smem() + kReserved) / (smem + kReserved);
  return device.num_sms() * static_cast<int64_t>(per_sm < 1 ? 1 : per_sm > kMost ? kMost : per_sm);
}

// call: all but tile_rows, key_block and work is set. launch_items(grid, call) starts the kernel.
template <typename Launch>
void run_paged(PagedCall call, const PagedBatch& batch, int64_t num_tokens, DType out_type,
               int tile_rows, int key_block, size_t smem, const CudaDevice& device,
               StepCuts& cuts, Workspace& scratch, const Launch& launch_items) {
  Workspace::Scope scope(scratch);
  call.tile_rows = tile_rows;
  call.key_block = key_block;
  const SplitPlan plan = plan_split(call, batch, num_tokens, blocks_at_once(device, smem));
  schedule(call, plan, batch, cuts, scratch, device.stream());
  launch_items(dim3(static_cast<unsigned>(plan.max_items), static_cast<unsigned>(call.kv_heads)),
               call);
  combine_parts(call, plan, out_type, device.stream());
}

template <bool kSharedValues>
void run_paged_fma(const PagedCall& call, const PagedBatch& batch, int64_t num_tokens,
                   DType activation, DType cache, const CudaDevice& device, StepCuts& cuts,
                   Workspace& scratch) {
  const size_t smem = FmaTile::bytes(call.d, call.dv, kSharedValues);
  SHOAL_CHECK(smem <= device.max_smem(), "head dimensions {} and {} need {} bytes of shared memory",
              call.d, call.dv, smem);
  with_cache_type(cache, [&](auto element) {
    using TCache = decltype(element);
    const auto kernel = activation == DType::kBF16
                            ? paged_fma_kernel<bf16, TCache, kSharedValues>
                            : paged_fma_kernel<float, TCache, kSharedValues>;
    run_paged(call, batch, num_tokens, activation, kFmaRows, kFmaKeys, smem, device, cuts, scratch,
              [&](dim3 grid, const PagedCall& c) {
                launch(kernel, grid, dim3(kFmaThreads), smem, device.stream(), c);
              });
  });
}

// Whether rows of the tensor can be read 16 bytes at a time.
inline bool rows_aligned_16(const Tensor& tensor) {
  const int64_t size = dtype_size(tensor.dtype);
  bool aligned = reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
  for (int i = 0; i + 1 < tensor.rank; ++i) aligned &= tensor.stride[i] * size % 16 == 0;
  return aligned;
}

inline bool rows_aligned_16(const CacheTensor& cache) {
  return rows_aligned_16(cache.data) && (!cache.rope.defined() || rows_aligned_16(cache.rope));
}

}  // namespace shoal::gpu
