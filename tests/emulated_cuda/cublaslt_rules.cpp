// What cuBLASLt documents about products: the cuBLAS documentation,
// "cublasLtMatmul()" (tables of types) and "Narrow Precision Data Types Usage" (scale modes).
#include "cublaslt_rules.h"

namespace shoal::emulated::lt {
namespace {

cublasStatus_t judge_fp8(int arch, const Operation& o, const CublasLtProduct& p) {
  if (arch < 89) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool scalars = p.a_mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F &&
                       p.b_mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  const auto is_block = [](cublasLtMatmulMatrixScale_t mode) {
    return mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F ||
           mode == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
  };
  if (!scalars) {
    if (arch != 90 || !is_block(p.a_mode) || !is_block(p.b_mode))
      return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p.a_mode == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F && p.a_mode == p.b_mode) {
      return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (p.m % 4 != 0 || p.n % 4 != 0 || o.fast_accum != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (o.a_scale == nullptr || o.b_scale == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (o.c_mode != 0 || o.d_mode != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!aligned(o.a_scale, scalars ? 4 : 16) || !aligned(o.b_scale, scalars ? 4 : 16)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const int64_t out = cublaslt_bytes(p.out);
  if (p.k % 16 != 0 || p.lda % 16 != 0 || p.ldb % 16 != 0 || p.m * out % 16 != 0 ||
      p.ldc * out % 16 != 0 || p.ldd * out % 16 != 0) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

Judged judge(int arch, const cublasLtMatmulDescOpaque_t* operation,
             const cublasLtMatrixLayoutOpaque_t* a, const cublasLtMatrixLayoutOpaque_t* b,
             const cublasLtMatrixLayoutOpaque_t* c, const cublasLtMatrixLayoutOpaque_t* d) {
  Judged result;
  const auto* o = open<Operation>(operation, kOperation);
  const Layout* layouts[] = {open<Layout>(a, kLayout), open<Layout>(b, kLayout),
                             open<Layout>(c, kLayout), open<Layout>(d, kLayout)};
  if (o == nullptr) return result;
  for (const Layout* layout : layouts) {
    if (layout == nullptr || layout->rows == 0 || layout->cols == 0 ||
        layout->ld < static_cast<int64_t>(layout->rows)) {
      return result;
    }
    if (layout->rows > INT32_MAX || layout->cols > INT32_MAX || layout->ld > INT32_MAX ||
        layout->order != CUBLASLT_ORDER_COL || layout->batch_count != 1) {
      result.status = CUBLAS_STATUS_NOT_SUPPORTED;
      return result;
    }
  }
  const auto& [la, lb, lc, ld] = layouts;
  CublasLtProduct& p = result.product;
  p.in = static_cast<cudaDataType_t>(la->type);
  p.out = static_cast<cudaDataType_t>(ld->type);
  const bool fp8 = p.in == CUDA_R_8F_E4M3;

  // The one form that is here; of the library's others none is in use.
  if (o->transa != CUBLAS_OP_T || o->transb != CUBLAS_OP_N || o->transc != CUBLAS_OP_N ||
      o->compute_type != CUBLAS_COMPUTE_32F || o->scale_type != CUDA_R_32F ||
      o->pointer_mode != CUBLASLT_POINTER_MODE_HOST || lb->type != la->type) {
    result.status = CUBLAS_STATUS_NOT_SUPPORTED;
    return result;
  }
  if (la->rows != lb->rows || la->cols != ld->rows || lb->cols != ld->cols ||
      lc->rows != ld->rows || lc->cols != ld->cols || lc->type != ld->type) {
    return result;
  }
  p.m = static_cast<int64_t>(la->cols);
  p.n = static_cast<int64_t>(lb->cols);
  p.k = static_cast<int64_t>(la->rows);
  p.lda = la->ld;
  p.ldb = lb->ld;
  p.ldc = lc->ld;
  p.ldd = ld->ld;
  result.status = CUBLAS_STATUS_NOT_SUPPORTED;
  const bool types = (p.in == CUDA_R_32F && p.out == CUDA_R_32F) ||
                     (p.in == CUDA_R_16BF && (p.out == CUDA_R_16BF || p.out == CUDA_R_32F)) ||
                     (fp8 && (p.out == CUDA_R_16BF || p.out == CUDA_R_16F || p.out == CUDA_R_32F));
  if (!types) return result;
  if (o->epilogue == CUBLASLT_EPILOGUE_BIAS) {
    const cudaDataType_t wanted = fp8 && p.out == CUDA_R_32F ? CUDA_R_16BF : p.out;
    p.bias_type = o->bias_type == -1 ? p.out : static_cast<cudaDataType_t>(o->bias_type);
    if (p.bias_type != wanted) return result;
    if (o->bias == nullptr) {
      result.status = CUBLAS_STATUS_INVALID_VALUE;
      return result;
    }
    p.bias = o->bias;
  } else if (o->epilogue != CUBLASLT_EPILOGUE_DEFAULT) {
    return result;
  }
  p.a_mode = static_cast<cublasLtMatmulMatrixScale_t>(o->a_mode);
  p.b_mode = static_cast<cublasLtMatmulMatrixScale_t>(o->b_mode);
  p.a_scale = static_cast<const float*>(o->a_scale);
  p.b_scale = static_cast<const float*>(o->b_scale);
  if (fp8) {
    result.status = judge_fp8(arch, *o, p);
  } else if (o->a_scale != nullptr || o->b_scale != nullptr || o->c_scale != nullptr ||
             o->d_scale != nullptr || o->a_mode != 0 || o->b_mode != 0) {
    result.status = CUBLAS_STATUS_INVALID_VALUE;  // scales are for narrow types
  } else {
    result.status = CUBLAS_STATUS_SUCCESS;
  }
  return result;
}

size_t workspace_of(const Algorithm& algorithm, const CublasLtProduct& p) {
  return algorithm.split_k == 1
             ? 0
             : static_cast<size_t>(algorithm.split_k) * p.m * p.n * sizeof(float);
}

cublasStatus_t check_algorithm(const Algorithm* algorithm, int arch, const CublasLtProduct& p) {
  if (algorithm == nullptr || algorithm->in != p.in || algorithm->out != p.out ||
      (algorithm->id != 66 && algorithm->id != 67 && algorithm->id != 70) ||
      algorithm->split_k < 1 || algorithm->split_k > 64) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (algorithm->arch != arch) return CUBLAS_STATUS_ARCH_MISMATCH;
  return algorithm->id == 70 && p.n % 8 != 0 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

}  // namespace shoal::emulated::lt
