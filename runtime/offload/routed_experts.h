// RoutedExperts: the experts of one layer that this rank holds, wherever they live. A mixture asks
// for their weighted sum and does not know.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "parallel/exec_context.h"
#include "parallel/shard.h"
#include "parallel/weight_source.h"
#include "runtime/offload/expert_image.h"

namespace shoal {

class RoutedExperts {
 public:
  virtual ~RoutedExperts() = default;
  // out: per row of x the weighted sum of this rank's experts, added in the order of its choices;
  // zeros for a row that chose none of them. Ids of other ranks' experts are skipped.
  virtual void forward(ExecContext& ctx, const Tensor& x,  // [T, hidden]
                       const Tensor& expert_ids,           // [T, top_k] I32
                       const Tensor& weights,              // [T, top_k] F32
                       const Tensor& out) = 0;             // [T, hidden]
  // Rows that each of this rank's experts has been given since start; empty: not counted.
  const std::vector<uint64_t>& rows() const { return rows_; }

 protected:
  std::vector<uint64_t> rows_;
};

// All of them on the device: nothing comes to the host, so that a step can be recorded.
class DeviceExperts : public RoutedExperts {
 public:
  // name: "model.layers.3.mlp"; experts: those of this rank. count: rows(), for which the device's memory
  // has to be host memory.
  DeviceExperts(WeightSource& source, const std::string& name, int64_t hidden, int64_t inner,
                Range experts, bool count = false);
  void forward(ExecContext& ctx, const Tensor& x, const Tensor& expert_ids, const Tensor& weights,
               const Tensor& out) override;

 private:
  const Range experts_;
  const int64_t inner_;
  std::array<std::vector<Weight>, ExpertImage::kParts> weights_;  // of each expert
};

// down(silu(gate(x)) * up(x)) of rows sorted by expert: the products leave the result in `x`.
void multiply_experts(Ops& ops, const Tensor& x,  // [rows, hidden]
                      const std::array<std::vector<Weight>, ExpertImage::kParts>& experts,
                      const Tensor& offsets,                  // [experts + 1] I32
                      const Tensor& gate, const Tensor& up);  // [rows, inner]: room

}  // namespace shoal
