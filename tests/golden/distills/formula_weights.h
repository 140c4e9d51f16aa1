// A WeightSource whose weights follow from the tensor's name, as generate.py makes them: INT4 in groups of
// 128 for every matrix of a layer, BF16 for embedding and head.
#pragma once

#include <vector>

#include "kernels/base/device.h"
#include "parallel/weight_source.h"

namespace shoal {

class FormulaWeights final : public WeightSource {
 public:
  explicit FormulaWeights(Device& device) : device_(device) {}

  bool has(const std::string& name) const override { return true; }
  Weight matrix(const std::string& name, int64_t n, int64_t k, Range rows, Range cols,
                bool keep_f32) override;
  Tensor vector(const std::string& name, int64_t n, Range range) override;
  Tensor allocate(const std::string& label, DType dtype,
                  std::initializer_list<int64_t> dims) override;

 private:
  Weight int4(const std::string& name, int64_t k, Range rows, Range cols);
  Tensor place(DType dtype, std::initializer_list<int64_t> dims, const void* values);

  Device& device_;
  std::vector<Buffer> buffers_;
};

}  // namespace shoal
