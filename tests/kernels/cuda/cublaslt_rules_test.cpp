// Which products cuBLASLt has algorithms for: the rules of its documentation that CublasLt is built
// on, asked of whatever library is linked. On the emulation they are a test of the stand-in; on a
// GPU, of what we believe.
#include <cublasLt.h>

#include "tests/kernels/cuda/cuda_case.h"

namespace shoal::test {
namespace {

template <typename T>
cublasStatus_t set(cublasLtMatmulDescOpaque_t& operation, cublasLtMatmulDescAttributes_t attribute,
                   T value) {
  return cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof(value));
}

// One product, to be changed at one place per case.
struct Case {
  int64_t m = 256, n = 64, k = 512;
  int64_t lda = 512, ldb = 512, ldd = 256;
  cudaDataType_t in = CUDA_R_8F_E4M3, out = CUDA_R_16BF;
  int32_t transa = CUBLAS_OP_T, transb = CUBLAS_OP_N;
  int32_t a_mode = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
  int32_t b_mode = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  bool scales = true;
  int8_t fast_accum = 0;
  int32_t bias_type = -1;  // none
};

// Whether the library offers an algorithm for it.
bool offered(cublasLtHandle_t handle, const void* memory, const Case& c) {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t a, b, d;
  cublasLtMatmulPreferenceOpaque_t preference;
  REQUIRE(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F) ==
          CUBLAS_STATUS_SUCCESS);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, c.transa);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, c.transb);
  set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, c.a_mode);
  set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, c.b_mode);
  set(operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, c.fast_accum);
  if (c.scales) {
    set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, memory);
    set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, memory);
  }
  if (c.bias_type != -1) {
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_BIAS});
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, memory);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, c.bias_type);
  }
  const bool ta = c.transa == CUBLAS_OP_T, tb = c.transb == CUBLAS_OP_T;
  cublasLtMatrixLayoutInit(&a, c.in, ta ? c.k : c.m, ta ? c.m : c.k, c.lda);
  cublasLtMatrixLayoutInit(&b, c.in, tb ? c.n : c.k, tb ? c.k : c.n, c.ldb);
  cublasLtMatrixLayoutInit(&d, c.out, c.m, c.n, c.ldd);
  REQUIRE(cublasLtMatmulPreferenceInit(&preference) == CUBLAS_STATUS_SUCCESS);
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, &operation, &a, &b, &d, &d,
                                                               &preference, 1, &result, &found);
  return status == CUBLAS_STATUS_SUCCESS && found == 1 && result.state == CUBLAS_STATUS_SUCCESS;
}

TEST_CASE("cublaslt rules: products that have an algorithm, and that have none",
          "[cuda][cublaslt]") {
  const int arch = cuda_device().arch();
  const Buffer memory = cuda_device().allocate(1 << 20);
  cublasLtHandle_t handle = nullptr;
  REQUIRE(cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS);
  const auto ok = [&](const std::function<void(Case&)>& change) {
    Case c;
    change(c);
    return offered(handle, memory.data(), c);
  };
  const auto plain = [](Case& c, cudaDataType_t in, cudaDataType_t out) {
    c.in = in;
    c.out = out;
    c.a_mode = c.b_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
    c.scales = false;
  };
  // BF16 and F32, with the bias of the output's type and no other.
  CHECK(ok([&](Case& c) { plain(c, CUDA_R_16BF, CUDA_R_16BF); }));
  CHECK(ok([&](Case& c) { plain(c, CUDA_R_16BF, CUDA_R_32F); }));
  CHECK(ok([&](Case& c) { plain(c, CUDA_R_32F, CUDA_R_32F); }));
  CHECK_FALSE(ok([&](Case& c) { plain(c, CUDA_R_32F, CUDA_R_16BF); }));
  CHECK(ok([&](Case& c) {
    plain(c, CUDA_R_16BF, CUDA_R_32F);
    c.bias_type = CUDA_R_32F;
  }));
  CHECK(ok([&](Case& c) {
    plain(c, CUDA_R_16BF, CUDA_R_16BF);
    c.bias_type = CUDA_R_16BF;
  }));
  CHECK_FALSE(ok([&](Case& c) {
    plain(c, CUDA_R_16BF, CUDA_R_16BF);
    c.bias_type = CUDA_R_32F;
  }));
  // Scales are for narrow types.
  CHECK_FALSE(ok([&](Case& c) {
    plain(c, CUDA_R_16BF, CUDA_R_16BF);
    c.scales = true;
  }));

  CHECK(ok([](Case& c) {}) == (arch == 90));
  if (arch == 90) {
    CHECK(ok([](Case& c) { c.out = CUDA_R_32F; }));
    CHECK_FALSE(ok([](Case& c) { c.out = CUDA_R_8F_E4M3; }));
    CHECK(ok([](Case& c) { c.bias_type = CUDA_R_16BF; }));
    CHECK_FALSE(ok([](Case& c) {
      c.bias_type = CUDA_R_32F;
      c.out = CUDA_R_32F;
    }));
    // Pairs of scale modes.
    const auto modes = [&](int32_t a, int32_t b) {
      return ok([&](Case& c) { c.a_mode = a, c.b_mode = b; });
    };
    CHECK(modes(CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F));
    CHECK(modes(CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F,
                CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F));
    CHECK_FALSE(modes(CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F,
                      CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F));
    CHECK_FALSE(
        modes(CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F));
    // TN only; dimensions in 16 bytes; M and N in fours.
    CHECK_FALSE(ok([](Case& c) {
      c.transa = CUBLAS_OP_N;
      c.lda = c.m;
    }));
    CHECK_FALSE(ok([](Case& c) {
      c.transb = CUBLAS_OP_T;
      c.ldb = c.n;
    }));
    CHECK_FALSE(ok([](Case& c) { c.k = 504; }));
    CHECK_FALSE(ok([](Case& c) { c.ldb = 520; }));
    CHECK_FALSE(ok([](Case& c) { c.ldd = 260; }));
    CHECK_FALSE(ok([](Case& c) { c.m = 250; }));
    CHECK(ok([](Case& c) { c.n = 4; }));
    CHECK_FALSE(ok([](Case& c) { c.n = 6; }));
    CHECK_FALSE(ok([](Case& c) { c.fast_accum = 1; }));
  }
  CHECK(cublasLtDestroy(handle) == CUBLAS_STATUS_SUCCESS);
}

}  // namespace
}  // namespace shoal::test
