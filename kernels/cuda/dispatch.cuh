// dispatch.cuh: from a tensor's dtype to the template argument of a kernel.
#pragma once

#include "kernels/base/tensor.h"
#include "kernels/cuda/gpu.h"

namespace shoal::gpu {

// body(an element of the tensor's C++ type); the caller has checked that it is F32 or BF16.
template <typename Body>
void with_activation_type(const Tensor& tensor, const Body& body) {
  if (tensor.dtype == DType::kF32) {
    body(float());
  } else {
    body(bf16());
  }
}

// The same for two tensors whose types are independent.
template <typename Body>
void with_activation_types(const Tensor& a, const Tensor& b, const Body& body) {
  with_activation_type(a, [&](auto x) { with_activation_type(b, [&](auto y) { body(x, y); }); });
}

}  // namespace shoal::gpu
