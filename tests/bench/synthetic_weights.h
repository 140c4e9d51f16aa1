// A WeightSource without a checkpoint: made-up weights, made in the device's memory. Counts what a
// step reads of them.
#pragma once

#include "parallel/weight_source.h"
#include "tests/bench/device_data.h"

namespace shoal::bench {

class SyntheticWeights final : public WeightSource {
 public:
  // linears: the type of all matrices but embedding, head and routers, which are BF16.
  SyntheticWeights(Device& device, DType linears)
      : device_(device), data_(device), linears_(linears) {}

  bool has(const std::string& name) const override { return true; }
  // Throws InvalidInput when the device has less than 1 GiB left. REQUIRES: a slice that begins at
  // 0, that of rank 0.
  Weight matrix(const std::string& name, int64_t n, int64_t k, Range rows, Range cols,
                bool keep_f32) override;
  Tensor vector(const std::string& name, int64_t n, Range range) override;
  Tensor allocate(const std::string& label, DType dtype,
                  std::initializer_list<int64_t> dims) override;

  struct Part {
    int64_t bytes = 0, elements = 0;
    void add(const Part& other) {
      bytes += other.bytes;
      elements += other.elements;
    }
  };
  const Part& experts() const { return experts_; }  // routed ones
  const Part& head() const { return head_; }
  // Read by each step of either kind; of kv_b_proj decode reads the absorbed forms only, prefill
  // itself.
  const Part& linears() const { return linears_part_; }
  const Part& absorbed() const { return absorbed_; }
  const Part& expanded() const { return expanded_; }
  int64_t total_bytes() const { return total_bytes_; }

 private:
  Part& part_of(const std::string& name);

  Device& device_;
  DeviceData data_;
  DType linears_;
  Part experts_, head_, embedding_, linears_part_, absorbed_, expanded_;
  int64_t total_bytes_ = 0;
};

}  // namespace shoal::bench
