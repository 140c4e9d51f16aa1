// RecordingOps: the verbs of another Ops, with the inputs of chosen weights summed up on the way: what
// calibration needs to know of a model, whatever its architecture.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/device.h"
#include "kernels/ops.h"

namespace shoal {

// Ops and device must outlive it. One thread, as for Ops.
class RecordingOps final : public Ops {
 public:
  RecordingOps(Ops& ops, Device& device) : ops_(ops), device_(device) {}

  // From here on only inputs of these are kept: weight data -> the name that its sum goes under. What was
  // kept before is forgotten.
  void record(std::map<const void*, std::string> weights);
  // The sum of x x^T over the inputs seen, [k, k]; zeros where there were none. Hands it over.
  std::vector<float> take_sum(const std::string& name, int64_t k);

  void end_warm_up() override { ops_.end_warm_up(); }
  void begin_step() override { ops_.begin_step(); }
  void end_step() override { ops_.end_step(); }
  void linear(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out) override;
  void grouped_linear(const Tensor& x, std::span<const Weight> experts, const Tensor& offsets,
                      const Tensor& out) override;

  void embedding(const Tensor& ids, const Weight& table, int64_t first_row,
                 const Tensor& out) override {
    ops_.embedding(ids, table, first_row, out);
  }
  void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) override {
    ops_.rms_norm(x, weight, eps, out);
  }
  void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float eps,
                    const Tensor& out) override {
    ops_.add_rms_norm(x, residual, weight, eps, out);
  }
  void copy(const Tensor& x, const Tensor& out) override { ops_.copy(x, out); }
  void add(const Tensor& x, const Tensor& y) override { ops_.add(x, y); }
  void head_linear(const Tensor& x, const Tensor& w, const Tensor& out) override {
    ops_.head_linear(x, w, out);
  }
  void silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) override {
    ops_.silu_mul(gate, up, out);
  }
  void rope(const Tensor& x, const Tensor& positions, const Tensor& table,
            bool interleaved) override {
    ops_.rope(x, positions, table, interleaved);
  }
  void write_cache(const Tensor& x, const Tensor& slots, const CacheTensor& cache) override {
    ops_.write_cache(x, slots, cache);
  }
  void gather_cache(const CacheTensor& cache, const Tensor& block_table, int32_t page_size,
                    int64_t begin, int64_t end, const Tensor& out) override {
    ops_.gather_cache(cache, block_table, page_size, begin, end, out);
  }
  void mla_decode(const Tensor& q, const CacheTensor& cache, const PagedBatch& batch,
                  float softmax_scale, const Tensor& out) override {
    ops_.mla_decode(q, cache, batch, softmax_scale, out);
  }
  void mla_prefill(const Tensor& q, const Tensor& kv, const Tensor& k_pe, const Tensor& positions,
                   int64_t first_position, float softmax_scale,
                   const AttentionState& state) override {
    ops_.mla_prefill(q, kv, k_pe, positions, first_position, softmax_scale, state);
  }
  void begin_state(const AttentionState& state) override { ops_.begin_state(state); }
  void finish_state(const AttentionState& state, const Tensor& out) override {
    ops_.finish_state(state, out);
  }
  void gqa_attention(const Tensor& q, const CacheTensor& k_cache, const CacheTensor& v_cache,
                     const PagedBatch& batch, const HeadMap& heads, float softmax_scale,
                     const Tensor& out) override {
    ops_.gqa_attention(q, k_cache, v_cache, batch, heads, softmax_scale, out);
  }
  void route(const Tensor& logits, const Tensor& correction_bias, const RouterSpec& spec,
             const Tensor& expert_ids, const Tensor& weights) override {
    ops_.route(logits, correction_bias, spec, expert_ids, weights);
  }
  int64_t sort_by_expert(const Tensor& expert_ids, int32_t first_expert, const Tensor& source_row,
                         const Tensor& slot, const Tensor& offsets) override {
    return ops_.sort_by_expert(expert_ids, first_expert, source_row, slot, offsets);
  }
  void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) override {
    ops_.gather_rows(x, rows, out);
  }
  void combine(const Tensor& rows, const Tensor& slot, const Tensor& weights,
               const Tensor& out) override {
    ops_.combine(rows, slot, weights, out);
  }
  void dequantize(const Weight& w, const Tensor& out) override { ops_.dequantize(w, out); }

 private:
  // Of one name. Rows are kept until there are k of them: an expert that sees few holds less than k * k.
  struct Inputs {
    std::vector<float> rows;  // [seen since the last sum, k]
    std::vector<float> sum;   // [k, k], or empty
  };
  void add_inputs(const Weight& w, const Tensor& x);  // [rows, k]
  void fold(Inputs& inputs, int64_t k);

  Ops& ops_;
  Device& device_;
  std::map<const void*, std::string> weights_;
  std::map<std::string, Inputs> inputs_;
};

}  // namespace shoal
