#include "kernels/cuda/cuda_ops.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/expert_tables.h"
#include "kernels/cuda/sampling.h"

namespace shoal {

void check_activation(const Tensor& tensor, int rank, const char* what) {
  SHOAL_CHECK((tensor.dtype == DType::kF32 || tensor.dtype == DType::kBF16) &&
                  tensor.rank == rank && tensor.stride[rank - 1] == 1,
              "{} is {}, wanted float32 or bfloat16 of rank {}", what, tensor.shape_string(), rank);
}

void check_i32_on_device(const Tensor& tensor, int64_t elements, const char* what) {
  SHOAL_CHECK(tensor.dtype == DType::kI32 && tensor.contiguous() &&
                  tensor.num_elements() >= elements,
              "{} is {}, wanted {} of int32", what, tensor.shape_string(), elements);
}

CudaOps::CudaOps(CudaDevice& device)
    : device_(device),
      scratch_(device),
      cublaslt_(std::make_unique<CublasLt>(device)),
      expert_tables_(std::make_unique<ExpertTables>(device)) {}

CudaOps::~CudaOps() = default;

std::unique_ptr<Ops> make_cuda_ops(CudaDevice& device) { return std::make_unique<CudaOps>(device); }

std::unique_ptr<DeviceSampler> make_cuda_sampler(CudaDevice& device) {
  return std::make_unique<CudaSampler>(device);
}

}  // namespace shoal
