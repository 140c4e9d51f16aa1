#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/cpu_backend.h"

namespace shoal {

void check_f32(const Tensor& tensor, int rank, const char* what) {
  SHOAL_CHECK(tensor.dtype == DType::kF32 && tensor.rank == rank,
              "{} is {}, not float32 of rank {}", what, tensor.shape_string(), rank);
  SHOAL_CHECK(tensor.stride[rank - 1] == 1, "{} has no dense rows", what);
}

void check_i32(const Tensor& tensor, int64_t elements, const char* what) {
  SHOAL_CHECK(
      tensor.dtype == DType::kI32 && tensor.num_elements() == elements && tensor.contiguous(),
      "{} is {}, not {} dense int32", what, tensor.shape_string(), elements);
}

CpuOps::CpuOps(int num_threads) : memory_(make_cpu_device()), pool_(num_threads) {}

float* CpuOps::scratch(int64_t floats) {
  constexpr int64_t kUnit = 1024;  // 4 KiB: workers never share a page
  const int64_t stride = (floats + kUnit - 1) / kUnit * kUnit;
  if (stride > scratch_stride_) {
    scratch_ = Buffer();
    scratch_ = memory_->allocate(static_cast<size_t>(stride) * sizeof(float) * pool_.num_threads());
    scratch_stride_ = stride;
  }
  return static_cast<float*>(scratch_.data());
}

}  // namespace shoal
