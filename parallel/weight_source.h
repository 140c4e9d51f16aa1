// WeightSource: where layers get their slices of a checkpoint from. Implemented by
// runtime/checkpoint; a layer asks for exactly the rows and columns that its rank holds, and only
// those bytes are read. Every returned view points into memory that the source's WeightStore owns.
// Throws InvalidInput naming file and tensor when a tensor is missing or its shape or type is wrong.
#pragma once

#include <string>

#include "kernels/base/tensor.h"
#include "parallel/shard.h"

namespace shoal {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual bool has(const std::string& name) const = 0;
  // `name`.weight of the unsharded shape [n, k]: its rows x cols, in the stored type (F32 is rounded
  // to BF16 when the model's dtype is bfloat16, unless keep_f32: routers), FP8 with its
  // `name`.weight_scale_inv blocks.
  virtual Weight matrix(const std::string& name, int64_t n, int64_t k, Range rows, Range cols,
                        bool keep_f32 = false) = 0;
  // The tensor called exactly `name`, of shape [n]: its range, as F32.
  virtual Tensor vector(const std::string& name, int64_t n, Range range) = 0;
  // Memory for a derived weight (the absorbed forms of MLA), counted with the others.
  virtual Tensor allocate(const std::string& label, DType dtype,
                          std::initializer_list<int64_t> dims) = 0;
};

}  // namespace shoal
