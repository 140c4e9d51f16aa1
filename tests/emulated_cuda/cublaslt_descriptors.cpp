// The stand-in for cuBLASLt: descriptors and names. Like those of the real library (seen
// with 13.1), setters look at sizes only; combinations are judged by heuristic, check and product.
#include <algorithm>
#include <cstring>

#include "cublaslt_rules.h"

using namespace shoal::emulated::lt;

namespace {

struct Attribute {
  int id;
  size_t offset, size;
  bool address = false;
};
#define FIELD(id, type, field) \
  { id, offsetof(type, field), sizeof(type::field) }
#define ADDRESS(id, type, field) \
  { id, offsetof(type, field), sizeof(type::field), true }
constexpr Attribute kOperationAttributes[] = {
    FIELD(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, Operation, compute_type),
    FIELD(CUBLASLT_MATMUL_DESC_SCALE_TYPE, Operation, scale_type),
    FIELD(CUBLASLT_MATMUL_DESC_POINTER_MODE, Operation, pointer_mode),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSA, Operation, transa),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSB, Operation, transb),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSC, Operation, transc),
    FIELD(CUBLASLT_MATMUL_DESC_FILL_MODE, Operation, fill_mode),
    FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE, Operation, epilogue),
    ADDRESS(CUBLASLT_MATMUL_DESC_BIAS_POINTER, Operation, bias),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, Operation, bias_type),
    ADDRESS(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, Operation, a_scale),
    ADDRESS(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, Operation, b_scale),
    ADDRESS(CUBLASLT_MATMUL_DESC_C_SCALE_POINTER, Operation, c_scale),
    ADDRESS(CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, Operation, d_scale),
    FIELD(CUBLASLT_MATMUL_DESC_FAST_ACCUM, Operation, fast_accum),
    FIELD(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, Operation, a_mode),
    FIELD(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, Operation, b_mode),
    FIELD(CUBLASLT_MATMUL_DESC_C_SCALE_MODE, Operation, c_mode),
    FIELD(CUBLASLT_MATMUL_DESC_D_SCALE_MODE, Operation, d_mode),
};
constexpr Attribute kPreferenceAttributes[] = {
    FIELD(CUBLASLT_MATMUL_PREF_SEARCH_MODE, Preference, search_mode),
    FIELD(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, Preference, max_workspace),
    FIELD(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, Preference, reduction_mask),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, Preference, align_a),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, Preference, align_b),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, Preference, align_c),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, Preference, align_d),
};
constexpr Attribute kAlgorithmAttributes[] = {
    FIELD(CUBLASLT_ALGO_CONFIG_ID, Algorithm, id),
    FIELD(CUBLASLT_ALGO_CONFIG_TILE_ID, Algorithm, tile),
    FIELD(CUBLASLT_ALGO_CONFIG_STAGES_ID, Algorithm, stages),
    FIELD(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, Algorithm, split_k),
};
#undef FIELD
#undef ADDRESS

template <size_t n>
const Attribute* find(const Attribute (&attributes)[n], int id) {
  const auto* found =
      std::find_if(attributes, attributes + n, [&](const Attribute& a) { return a.id == id; });
  return found == attributes + n ? nullptr : found;
}

template <typename T, typename Opaque, size_t n>
cublasStatus_t set_attribute(Opaque* opaque, uint32_t magic, const Attribute (&attributes)[n],
                             int id, const void* value, size_t size) {
  const Attribute* attribute = find(attributes, id);
  if (open<T>(opaque, magic) == nullptr || attribute == nullptr || value == nullptr ||
      size != attribute->size) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (!attribute->address) ++descriptor_calls;
  std::memcpy(reinterpret_cast<char*>(opaque) + attribute->offset, value, size);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return CUBLAS_VERSION; }

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_INTERNAL_ERROR";
  }
}

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED: return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE: return "an invalid value was used as a parameter";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "an absent device architectural feature is required";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "the GPU program failed to execute";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "the functionality is not supported";
    default: return "an internal operation failed";
  }
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t operation, size_t size,
                                               cublasComputeType_t compute, cudaDataType_t scale) {
  if (operation == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  if (size < sizeof(*operation)) return CUBLAS_STATUS_ALLOC_FAILED;
  ++descriptor_calls;
  Operation inside{};
  inside.magic = kOperation;
  inside.compute_type = compute;
  inside.scale_type = scale;
  inside.fill_mode = CUBLAS_FILL_MODE_FULL;
  inside.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  inside.bias_type = -1;
  std::memcpy(static_cast<void*>(operation), &inside, sizeof(inside));
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t size) {
  return set_attribute<Operation>(operation, kOperation, kOperationAttributes, attribute, value,
                                  size);
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size,
                                                 cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t ld) {
  if (layout == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  if (size < sizeof(*layout)) return CUBLAS_STATUS_ALLOC_FAILED;
  ++descriptor_calls;
  const Layout inside{kLayout, static_cast<uint32_t>(type), CUBLASLT_ORDER_COL, 1, rows, cols, ld};
  std::memcpy(static_cast<void*>(layout), &inside, sizeof(inside));
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference,
                                                     size_t size) {
  if (preference == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  if (size < sizeof(*preference)) return CUBLAS_STATUS_ALLOC_FAILED;
  ++descriptor_calls;
  const Preference inside{
      kPreference, CUBLASLT_SEARCH_BEST_FIT, CUBLASLT_REDUCTION_SCHEME_MASK, 256, 256, 256, 256, 0};
  std::memcpy(static_cast<void*>(preference), &inside, sizeof(inside));
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t size) {
  return set_attribute<Preference>(preference, kPreference, kPreferenceAttributes, attribute, value,
                                   size);
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t id,
                                                    void* value, size_t size, size_t* written) {
  const Attribute* attribute = find(kAlgorithmAttributes, id);
  if (algo == nullptr || attribute == nullptr || value == nullptr || size != attribute->size) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  std::memcpy(value, reinterpret_cast<const char*>(algo) + attribute->offset, size);
  if (written != nullptr) *written = size;
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
