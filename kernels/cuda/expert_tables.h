// ExpertTables: device copies of the weights' addresses that grouped_linear's kernels read, one
// table per span of experts, made at the first use of the span.
//
// A span is known by where it lies and how long it is. Its contents are compared at every use, so
// that other weights at the same place (a model that was loaded again) get a new copy; that, like
// the first use, must not happen while a graph is captured (SHOAL_CHECK). One thread uses it.
#pragma once

#include <map>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/matmul.h"

namespace shoal {

class ExpertTables {
 public:
  struct Table {
    DType type = DType::kF32;  // of all experts, like has_min, n and k
    bool has_min = false;
    int64_t n = 0, k = 0;
    WeightLayout layout;
    std::vector<WeightView> host;
    Buffer memory;
    const WeightView* device() const { return static_cast<const WeightView*>(memory.data()); }
  };

  explicit ExpertTables(CudaDevice& device) : device_(device) {}

  // Good until the next call. REQUIRES: 1 to kMaxGroups experts of one type and shape.
  const Table& get(std::span<const Weight> experts);

 private:
  void fill(Table& table, std::span<const Weight> experts);

  CudaDevice& device_;
  std::map<std::pair<const Weight*, size_t>, Table> tables_;
};

}  // namespace shoal
