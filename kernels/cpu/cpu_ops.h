// CpuOps: the verbs on the CPU. Each family of verbs is defined in a file of its own, which is
// compiled once per SIMD target (Highway) and chosen at run time.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "kernels/base/device.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops.h"

namespace shoal {

// Checks an activation: F32 of the given rank, last dimension dense.
void check_f32(const Tensor& tensor, int rank, const char* what);
void check_i32(const Tensor& tensor, int64_t elements, const char* what);

class CpuOps final : public Ops {
 public:
  explicit CpuOps(int num_threads);

  void embedding(const Tensor& ids, const Weight& table, int64_t first_row,
                 const Tensor& out) override;
  void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) override;
  void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float eps,
                    const Tensor& out) override;
  void copy(const Tensor& x, const Tensor& out) override;
  void add(const Tensor& x, const Tensor& y) override;
  void linear(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out) override;
  void head_linear(const Tensor& x, const Tensor& w, const Tensor& out) override;
  void grouped_linear(const Tensor& x, std::span<const Weight> experts, const Tensor& offsets,
                      const Tensor& out) override;
  void silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) override;
  void rope(const Tensor& x, const Tensor& positions, const Tensor& table,
            bool interleaved) override;
  void write_cache(const Tensor& x, const Tensor& slots, const CacheTensor& cache) override;
  void gather_cache(const CacheTensor& cache, const Tensor& block_table, int32_t page_size,
                    int64_t begin, int64_t end, const Tensor& out) override;
  void mla_decode(const Tensor& q, const CacheTensor& cache, const PagedBatch& batch,
                  float softmax_scale, const Tensor& out) override;
  void mla_prefill(const Tensor& q, const Tensor& kv, const Tensor& k_pe, const Tensor& positions,
                   int64_t first_position, float softmax_scale,
                   const AttentionState& state) override;
  void begin_state(const AttentionState& state) override;
  void finish_state(const AttentionState& state, const Tensor& out) override;
  void gqa_attention(const Tensor& q, const CacheTensor& k_cache, const CacheTensor& v_cache,
                     const PagedBatch& batch, const HeadMap& heads, float softmax_scale,
                     const Tensor& out) override;
  void route(const Tensor& logits, const Tensor& correction_bias, const RouterSpec& spec,
             const Tensor& expert_ids, const Tensor& weights) override;
  int64_t sort_by_expert(const Tensor& expert_ids, int32_t first_expert, const Tensor& source_row,
                         const Tensor& slot, const Tensor& offsets) override;
  void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) override;
  void combine(const Tensor& rows, const Tensor& slot, const Tensor& weights,
               const Tensor& out) override;
  void dequantize(const Weight& w, const Tensor& out) override;

 private:
  // Calls body(row begin, row end) for ranges of [0, rows) big enough to be worth a thread's
  // waking, when a row costs about `elements` simple element operations.
  template <typename Body>
  void for_rows(int64_t rows, int64_t elements, const Body& body) {
    // A job costs about 2 us to hand over; a core does about 8 elements per ns from L2.
    constexpr int64_t kElementsPerTask = 16384;
    const int64_t grain = elements > 0 ? (kElementsPerTask + elements - 1) / elements : rows;
    pool_.parallel_for(rows, grain > 0 ? grain : 1,
                       [&](int64_t begin, int64_t end, int) { body(begin, end); });
  }

  // Scratch of `floats` floats per worker, valid until the next call.
  float* scratch(int64_t floats);
  float* worker_scratch(int worker) const {
    return static_cast<float*>(scratch_.data()) + worker * scratch_stride_;
  }

  std::unique_ptr<Device> memory_;
  ThreadPool pool_;
  Buffer scratch_;
  int64_t scratch_stride_ = 0;  // floats per worker
};

}  // namespace shoal
