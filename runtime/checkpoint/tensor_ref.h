// TensorRef: one tensor of an open safetensors file, read as a matrix or a vector.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "parallel/shard.h"
#include "runtime/checkpoint/safetensors.h"

namespace shoal {

// The file must outlive it. Thread-safe.
struct TensorRef {
  std::string name;
  const SafetensorsFile* file = nullptr;
  const TensorInfo* info = nullptr;

  DType dtype() const { return info->dtype; }
  std::string where() const;  // "FILE: tensor "NAME""
  // Throws InvalidInput unless the tensor has this shape.
  void require_shape(const std::vector<int64_t>& shape) const;
  void require_type(DType dtype) const;

  // Exactly rows x cols of the tensor seen as [.., columns], row-major, in the stored type. Whole rows
  // are one read; a slice of columns is one read per row.
  void read(int64_t columns, Range rows, Range cols, std::byte* out) const;
  // The same of a float tensor (F32, F16, BF16), as F32. Throws InvalidInput for values that are not
  // finite, naming them `what` ("scales").
  void read_finite(int64_t columns, Range rows, Range cols, const char* what, float* out) const;
};

}  // namespace shoal
