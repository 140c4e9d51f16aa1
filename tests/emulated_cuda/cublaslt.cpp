// The stand-in for cuBLASLt: the calls that Shoal makes, on emulated devices. Prototypes are those
// of the real cublasLt.h. What the library documents (data types, "TN", alignment, scale modes and
// their pairs, epilogues, workspace) is enforced at the same calls and with the same codes; like
// the real one (seen with 13.1), setters look at sizes only, and combinations are judged by
// heuristic, check and product.
//
// Algorithms are invented, as opaque as the real ones, and chosen so that each duty of a caller
// shows:
//   66  takes any product
//   67  splits K in four through the workspace; offered first for few columns and a long K
//   70  wants columns in eights (AlgoCheck refuses others); offered first where they are
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "cublaslt_control.h"
#include "cublaslt_rules.h"
#include "stream_work.h"

using namespace shoal::emulated::lt;
using shoal::emulated::cublaslt_bytes;
using shoal::emulated::CublasLtProduct;

struct cublasLtContext {
  int device = 0;
  int arch = 0;
};

namespace {

std::atomic<int64_t> heuristic_calls{0}, check_calls{0}, matmul_calls{0};
std::atomic<int64_t> fail_after{-1};

cublasLtMatmulHeuristicResult_t result_for(const Algorithm& algorithm, const CublasLtProduct& p,
                                           int sms) {
  cublasLtMatmulHeuristicResult_t result{};
  std::memcpy(&result.algo, &algorithm, sizeof(algorithm));
  result.workspaceSize = workspace_of(algorithm, p);
  result.state = CUBLAS_STATUS_SUCCESS;
  const int64_t tiles = (p.m + 127) / 128 * ((p.n + 127) / 128) * algorithm.split_k;
  result.wavesCount = static_cast<float>(tiles) / static_cast<float>(sms);
  return result;
}

bool ready(cublasLtHandle_t handle) {
  int current = -1;
  return handle != nullptr && cudaGetDevice(&current) == cudaSuccess && current == handle->device;
}

}  // namespace

namespace shoal::emulated {

CublasLtCalls cublaslt_calls() {
  return {descriptor_calls, heuristic_calls, check_calls, matmul_calls};
}

void fail_cublaslt_matmul_after(int64_t n) { fail_after = n; }

}  // namespace shoal::emulated

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  int device = 0;
  cudaDeviceProp properties{};
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
    return CUBLAS_STATUS_NOT_INITIALIZED;
  }
  *handle = new cublasLtContext{device, 10 * properties.major + properties.minor};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle,
                                              cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* found) {
  if (!ready(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  const auto* wish = open<Preference>(preference, kPreference);
  if (wish == nullptr || requested <= 0 || results == nullptr || found == nullptr) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  ++heuristic_calls;
  *found = 0;
  const Judged judged = judge(handle->arch, operation, a, b, c, d);
  if (judged.status != CUBLAS_STATUS_SUCCESS) return judged.status;
  const CublasLtProduct& p = judged.product;
  const uint32_t least = p.in == CUDA_R_8F_E4M3 ? 16 : static_cast<uint32_t>(cublaslt_bytes(p.in));
  if (std::min({wish->align_a, wish->align_b, wish->align_c, wish->align_d}) < least) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  cudaDeviceProp properties{};
  cudaGetDeviceProperties(&properties, handle->device);
  const auto offer = [&](int32_t id, uint32_t tile, int32_t split_k) {
    const Algorithm algorithm{kAlgorithm,
                              id,
                              tile,
                              CUBLASLT_MATMUL_STAGES_128x4,
                              split_k,
                              static_cast<uint16_t>(p.in),
                              static_cast<uint16_t>(p.out),
                              static_cast<uint16_t>(handle->arch),
                              static_cast<uint16_t>(wish->align_a),
                              static_cast<uint16_t>(wish->align_b),
                              static_cast<uint16_t>(wish->align_d)};
    if (*found < requested && workspace_of(algorithm, p) <= wish->max_workspace) {
      results[(*found)++] = result_for(algorithm, p, std::max(properties.multiProcessorCount, 1));
    }
  };
  if (p.n <= 32 && p.k >= 512) offer(67, CUBLASLT_MATMUL_TILE_64x64, 4);
  if (p.n % 8 == 0) offer(70, CUBLASLT_MATMUL_TILE_128x256, 1);
  offer(66, CUBLASLT_MATMUL_TILE_128x128, 1);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algo,
                                       cublasLtMatmulHeuristicResult_t* result) {
  if (!ready(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (algo == nullptr || result == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  ++check_calls;
  const Judged judged = judge(handle->arch, operation, a, b, c, d);
  if (judged.status != CUBLAS_STATUS_SUCCESS) return judged.status;
  const auto* algorithm = open<Algorithm>(algo, kAlgorithm);
  const cublasStatus_t status = check_algorithm(algorithm, handle->arch, judged.product);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  cublasLtMatmulHeuristicResult_t checked = result_for(*algorithm, judged.product, 1);
  checked.algo = result->algo;  // "algo field is never updated"
  *result = checked;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (!ready(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (alpha == nullptr || beta == nullptr || a == nullptr || b == nullptr || d == nullptr ||
      shoal::emulated::device_of(stream) != handle->device) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  Judged judged = judge(handle->arch, operation, a_layout, b_layout, c_layout, d_layout);
  if (judged.status != CUBLAS_STATUS_SUCCESS) return judged.status;
  CublasLtProduct& p = judged.product;
  // A null algorithm asks the library to choose at every call: no caller here means to.
  const auto* algorithm = open<Algorithm>(algo, kAlgorithm);
  if (const auto status = check_algorithm(algorithm, handle->arch, p);
      status != CUBLAS_STATUS_SUCCESS) {
    return status;
  }
  if (!aligned(a, algorithm->align_a) || !aligned(b, algorithm->align_b) ||
      !aligned(d, algorithm->align_d) || !aligned(p.bias, 16) || !aligned(workspace, 256) ||
      workspace_bytes < workspace_of(*algorithm, p) ||
      (workspace == nullptr && workspace_of(*algorithm, p) > 0)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  std::memcpy(&p.alpha, alpha, sizeof(p.alpha));
  std::memcpy(&p.beta, beta, sizeof(p.beta));
  if (p.beta != 0 && (c == nullptr || !aligned(c, algorithm->align_d))) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  p.a = a;
  p.b = b;
  p.c = c;
  p.d = d;
  p.split_k = algorithm->split_k;
  p.workspace = static_cast<float*>(workspace);
  if (fail_after >= 0 && fail_after-- == 0) return CUBLAS_STATUS_EXECUTION_FAILED;
  ++matmul_calls;
  const cudaError_t error = shoal::emulated::enqueue(stream, [p, device = handle->device] {
    if (const char* operand = p.operand_outside_device_memory()) {
      shoal::emulated::fault_device(
          device, cudaErrorIllegalAddress,
          std::string("cublasLtMatmul: ") + operand + " is not (all) in device memory");
      return;
    }
    p.compute();
  });
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
