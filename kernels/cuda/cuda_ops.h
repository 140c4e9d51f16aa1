// CudaOps: the verbs on a GPU. Each family of verbs is defined in a file of its own, with its kernels.
#pragma once

#include <span>
#include <string>

#include "kernels/base/workspace.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/quantized_twin.h"
#include "kernels/cuda/step_cuts.h"
#include "kernels/ops.h"

namespace shoal {

class CublasLt;
class ExpertTables;

// Checks an activation: F32 or BF16 of the given rank, last dimension dense.
void check_activation(const Tensor& tensor, int rank, const char* what);
void check_i32_on_device(const Tensor& tensor, int64_t elements, const char* what);

// Up to as many rows linear() has our own kernels stream the weight, and no library is faster.
inline constexpr int64_t kFewRows = 8;

class CudaOps final : public Ops {
 public:
  // gemm_cache: see make_cuda_ops().
  CudaOps(CudaDevice& device, const std::string& gemm_cache);
  ~CudaOps() override;

  void end_warm_up() override;
  void begin_step() override { step_cuts_.begin(); }
  void end_step() override { step_cuts_.end(); }

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

  CublasLt& cublaslt() { return *cublaslt_; }  // to set, tune and describe

 private:
  cudaStream_t stream() const { return device_.stream(); }
  // Through cuBLASLt, where that takes it.
  bool dense_linear(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out);

  CudaDevice& device_;
  // What a verb needs between its kernels (partial sums, quantised activations); a verb takes it in a
  // Workspace::Scope. Grows in the first steps only, never while a graph is captured.
  Workspace scratch_;
  gpu::StepCuts step_cuts_;
  QuantizedTwin twin_;  // of the activation that linear() or a norm or silu_mul quantised last
  std::unique_ptr<CublasLt> cublaslt_;
  std::string gemm_cache_;
  bool tuning_ = false;
  std::unique_ptr<ExpertTables> expert_tables_;  // device copies of grouped_linear's weight spans
};

}  // namespace shoal
