// cublaslt_control.h: what tests may see and change of the stand-in for cuBLASLt. Process-wide.
#pragma once

#include <cstdint>

namespace shoal::emulated {

struct CublasLtCalls {
  int64_t descriptors = 0;  // initialised or given an attribute other than an address
  int64_t heuristics = 0;   // cublasLtMatmulAlgoGetHeuristic
  int64_t checks = 0;       // cublasLtMatmulAlgoCheck
  int64_t matmuls = 0;      // accepted
};
CublasLtCalls cublaslt_calls();  // since the start of the process

// The n-th cublasLtMatmul from now on (0: the next) answers CUBLAS_STATUS_EXECUTION_FAILED. -1:
// none.
void fail_cublaslt_matmul_after(int64_t n);

}  // namespace shoal::emulated
