#include "kernels/cuda/cuda_ops.h"

#include <spdlog/spdlog.h>

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

namespace {
constexpr size_t kScratchChunk = size_t{64} << 20;
}

CudaOps::CudaOps(CudaDevice& device, const std::string& gemm_cache)
    : device_(device),
      scratch_(device, kScratchChunk, MemoryUse::kScratch),
      step_cuts_(device),
      twin_(device),
      cublaslt_(std::make_unique<CublasLt>(device)),
      gemm_cache_(gemm_cache),
      expert_tables_(std::make_unique<ExpertTables>(device)) {
  // What the file has was timed before; without it every product is.
  tuning_ = !gemm_cache.empty() && cublaslt_->load(gemm_cache) == 0;
}

CudaOps::~CudaOps() = default;

bool CudaOps::dense_linear(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out) {
  // Timing waits for the device, which a recorded step cannot; its shapes were seen just before.
  return tuning_ && !device_.capturing() ? cublaslt_->tune(x, w, bias, out, scratch_, &twin_)
                                         : cublaslt_->matmul(x, w, bias, out, scratch_, &twin_);
}

void CudaOps::end_warm_up() {
  if (!tuning_) return;
  tuning_ = false;
  cublaslt_->save(gemm_cache_);
  spdlog::info("timed cuBLASLt's algorithms, kept in {}", gemm_cache_);
  spdlog::debug("{}", cublaslt_->describe());
}

std::unique_ptr<Ops> make_cuda_ops(CudaDevice& device, const std::string& gemm_cache) {
  return std::make_unique<CudaOps>(device, gemm_cache);
}

std::unique_ptr<DeviceSampler> make_cuda_sampler(CudaDevice& device) {
  return std::make_unique<CudaSampler>(device);
}

}  // namespace shoal
