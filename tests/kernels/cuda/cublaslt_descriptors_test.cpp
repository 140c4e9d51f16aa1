// What cuBLASLt's setters accept, asked of whatever library is linked: they need no GPU, so that
// the real one answers wherever it is built with, and the stand-in is held to the same answers.
#include <cublasLt.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdint>

namespace shoal::test {
namespace {

template <typename T>
cublasStatus_t set(cublasLtMatmulDescOpaque_t& operation, cublasLtMatmulDescAttributes_t attribute,
                   T value) {
  return cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof(value));
}

TEST_CASE("cublaslt descriptors: setters judge sizes, not values", "[cuda][cublaslt]") {
  cublasLtMatmulDescOpaque_t operation;
  CHECK(cublasLtMatmulDescInit_internal(&operation, 8, CUBLAS_COMPUTE_32F, CUDA_R_32F) ==
        CUBLAS_STATUS_ALLOC_FAILED);
  REQUIRE(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F) ==
          CUBLAS_STATUS_SUCCESS);
  for (const auto attribute :
       {CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB, CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
        CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
        CUBLASLT_MATMUL_DESC_EPILOGUE}) {
    INFO(attribute);
    CHECK(set(operation, attribute, int32_t{1}) == CUBLAS_STATUS_SUCCESS);
    CHECK(set(operation, attribute, int32_t{77}) == CUBLAS_STATUS_SUCCESS);
    CHECK(set(operation, attribute, int64_t{1}) == CUBLAS_STATUS_INVALID_VALUE);
    CHECK(cublasLtMatmulDescSetAttribute(&operation, attribute, nullptr, 4) ==
          CUBLAS_STATUS_INVALID_VALUE);
  }
  for (const auto attribute :
       {CUBLASLT_MATMUL_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
        CUBLASLT_MATMUL_DESC_B_SCALE_POINTER}) {
    CHECK(set(operation, attribute, static_cast<const void*>(nullptr)) == CUBLAS_STATUS_SUCCESS);
    CHECK(set(operation, attribute, int32_t{0}) == CUBLAS_STATUS_INVALID_VALUE);
  }
  CHECK(set(operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{0}) == CUBLAS_STATUS_SUCCESS);
  CHECK(set(operation, static_cast<cublasLtMatmulDescAttributes_t>(30), int32_t{0}) ==
        CUBLAS_STATUS_INVALID_VALUE);

  cublasLtMatrixLayoutOpaque_t layout;
  CHECK(cublasLtMatrixLayoutInit_internal(&layout, 8, CUDA_R_16BF, 8, 8, 8) ==
        CUBLAS_STATUS_ALLOC_FAILED);
  CHECK(cublasLtMatrixLayoutInit(&layout, CUDA_R_16BF, 64, 8, 8) == CUBLAS_STATUS_SUCCESS);

  cublasLtMatmulPreferenceOpaque_t preference;
  REQUIRE(cublasLtMatmulPreferenceInit(&preference) == CUBLAS_STATUS_SUCCESS);
  const uint32_t bytes = 16;
  const uint64_t workspace = 4096;
  CHECK(cublasLtMatmulPreferenceSetAttribute(&preference,
                                             CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &bytes,
                                             sizeof(bytes)) == CUBLAS_STATUS_SUCCESS);
  CHECK(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &workspace,
                                             sizeof(workspace)) == CUBLAS_STATUS_SUCCESS);
  CHECK(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &bytes, sizeof(bytes)) == CUBLAS_STATUS_INVALID_VALUE);
}

TEST_CASE("cublaslt descriptors: an algorithm's settings can be read from any bytes",
          "[cuda][cublaslt]") {
  // load() does so with what stood in a file.
  for (const uint64_t word : {uint64_t{0}, ~uint64_t{0}, uint64_t{0x1234567890abcdef}}) {
    cublasLtMatmulAlgo_t algo;
    std::fill(std::begin(algo.data), std::end(algo.data), word);
    for (const auto attribute : {CUBLASLT_ALGO_CONFIG_ID, CUBLASLT_ALGO_CONFIG_TILE_ID,
                                 CUBLASLT_ALGO_CONFIG_STAGES_ID, CUBLASLT_ALGO_CONFIG_SPLITK_NUM}) {
      int32_t value = 0;
      size_t written = 0;
      CHECK(cublasLtMatmulAlgoConfigGetAttribute(&algo, attribute, &value, sizeof(value),
                                                 &written) == CUBLAS_STATUS_SUCCESS);
      CHECK(written == sizeof(value));
    }
  }
}

}  // namespace
}  // namespace shoal::test
