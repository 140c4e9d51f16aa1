// DryDevice, DryOps, DryCollectives, DryWeights: everything that a model needs to run, and none of it
// real. Addresses that nothing may read; sizes that are all true.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/device.h"
#include "kernels/base/workspace.h"
#include "kernels/ops.h"
#include "parallel/collectives.h"
#include "parallel/weight_source.h"
#include "runtime/memory/dry_run.h"

namespace shoal {

class DryDevice final : public Device {
 public:
  std::string name() const override { return "dry"; }
  Buffer allocate(size_t bytes) override;
  void copy_to_device(void*, const void*, size_t) override {}
  void copy_to_host(void* host, const void* device, size_t bytes) override;
  void copy_on_device(void*, const void*, size_t) override {}
  void upload(void*, size_t, size_t, const Fill&) override {}
  void zero(void*, size_t) override {}
  void synchronize() override {}
  std::pair<size_t, size_t> memory_info() const override { return {SIZE_MAX / 2, SIZE_MAX / 2}; }

  // What copy_to_host() gives: these over and over, as every token's choice of experts.
  void set_choices(std::vector<int32_t> experts) { choices_ = std::move(experts); }

 protected:
  void deallocate(void*) override {}

 private:
  uintptr_t next_ = uintptr_t{1} << 40;
  std::vector<int32_t> choices_{0};
};

// The verbs: nothing, but that those of a GPU take the scratch that its kernels take at most.
class DryOps final : public Ops {
 public:
  DryOps(Device& device, bool on_gpu, GpuTraits gpu);
  // What kernels/cuda grows to: its chunks, and the memory of the cuts of a step.
  uint64_t scratch_bytes(Device& device) const;

  void embedding(const Tensor& ids, const Weight& table, int64_t first_row,
                 const Tensor& out) override {}
  void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) override {}
  void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float eps,
                    const Tensor& out) override {}
  void copy(const Tensor& x, const Tensor& out) override {}
  void add(const Tensor& x, const Tensor& y) override {}
  void linear(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out) override;
  void head_linear(const Tensor& x, const Tensor& w, const Tensor& out) override {}
  void grouped_linear(const Tensor& x, std::span<const Weight> experts, const Tensor& offsets,
                      const Tensor& out) override {}
  void silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) override {}
  void rope(const Tensor& x, const Tensor& positions, const Tensor& table,
            bool interleaved) override {}
  void write_cache(const Tensor& x, const Tensor& slots, const CacheTensor& cache) override {}
  void gather_cache(const CacheTensor& cache, const Tensor& block_table, int32_t page_size,
                    int64_t begin, int64_t end, const Tensor& out) override {}
  void mla_decode(const Tensor& q, const CacheTensor& cache, const PagedBatch& batch,
                  float softmax_scale, const Tensor& out) override;
  void mla_prefill(const Tensor& q, const Tensor& kv, const Tensor& k_pe, const Tensor& positions,
                   int64_t first_position, float softmax_scale,
                   const AttentionState& state) override {}
  void begin_state(const AttentionState& state) override {}
  void finish_state(const AttentionState& state, const Tensor& out) override {}
  void gqa_attention(const Tensor& q, const CacheTensor& k_cache, const CacheTensor& v_cache,
                     const PagedBatch& batch, const HeadMap& heads, float softmax_scale,
                     const Tensor& out) override;
  void route(const Tensor& logits, const Tensor& correction_bias, const RouterSpec& spec,
             const Tensor& expert_ids, const Tensor& weights) override {}
  int64_t sort_by_expert(const Tensor& expert_ids, int32_t first_expert, const Tensor& source_row,
                         const Tensor& slot, const Tensor& offsets) override;
  void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) override {}
  void combine(const Tensor& rows, const Tensor& slot, const Tensor& weights,
               const Tensor& out) override {}
  void dequantize(const Weight& w, const Tensor& out) override {}

 private:
  void attention_parts(const Tensor& q, int64_t value_dim);

  const bool on_gpu_;
  const GpuTraits gpu_;
  Workspace scratch_;
  Workspace twin_;  // kernels/cuda/quantized_twin.h: the rows that were quantised last
  int64_t max_tables_ = 0;
};

class DryCollectives final : public Collectives {
 public:
  DryCollectives(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_reduce_sum(const Tensor& x) override;
  void all_gather_rows(const Tensor&, std::span<const int64_t>, const Tensor&) override {}
  void reduce_scatter_rows(const Tensor& x, std::span<const int64_t> rows, const Tensor& out) override;
  void all_to_all_rows(const Tensor&, std::span<const int64_t>, const Tensor&,
                       std::span<const int64_t>) override {}
  // As if everybody had an expert here for each of its tokens.
  void all_to_all_counts(std::span<const int64_t> send, std::span<int64_t> recv) override;
  void gather_rows_to_root(const Tensor&, std::span<const int64_t>, const Tensor&) override {}

  void set_tokens(std::vector<int64_t> tokens_per_rank) { tokens_ = std::move(tokens_per_rank); }
  // What parallel/mpi gathers the others' parts into.
  uint64_t gathered_bytes() const { return gathered_; }

 private:
  const int rank_, size_;
  std::vector<int64_t> tokens_;
  uint64_t gathered_ = 0;
};

class DryWeights final : public WeightSource {
 public:
  // `layer_of`: the number in `forms` of layer i of `config`, which may have fewer of them.
  DryWeights(const ModelConfig& config, const FormOf& forms,
             const std::function<int64_t(int64_t)>& layer_of, Device& device);
  bool has(const std::string& name) const override { return forms_.count(name + ".weight") > 0; }
  Weight matrix(const std::string& name, int64_t n, int64_t k, Range rows, Range cols,
                bool keep_f32) override;
  Tensor vector(const std::string& name, int64_t n, Range range) override;
  Tensor allocate(const std::string& label, DType dtype,
                  std::initializer_list<int64_t> dims) override;

 private:
  std::map<std::string, WeightForm> forms_;  // by name
  Buffer memory_;                            // where all of them pretend to be
};

}  // namespace shoal
