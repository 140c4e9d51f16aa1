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
#include <cublasLt.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>

#include "cublaslt_control.h"
#include "cublaslt_product.h"
#include "stream_work.h"

using shoal::emulated::cublaslt_bytes;
using shoal::emulated::CublasLtProduct;

struct cublasLtContext {
  int device = 0;
  int arch = 0;
};

namespace {

std::atomic<int64_t> descriptor_calls{0}, heuristic_calls{0}, check_calls{0}, matmul_calls{0};
std::atomic<int64_t> fail_after{-1};

constexpr uint32_t kOperation = 0x6f706572, kLayout = 0x6c61796f, kPreference = 0x70726566,
                   kAlgorithm = 0x616c676f;

// What lies in the opaque structs.
struct Operation {
  uint32_t magic;
  int32_t compute_type, scale_type, pointer_mode, transa, transb, transc, fill_mode;
  uint32_t epilogue;
  int32_t bias_type, a_mode, b_mode, c_mode, d_mode;
  const void *bias, *a_scale, *b_scale, *c_scale, *d_scale;
  int8_t fast_accum;
};
struct Layout {
  uint32_t magic;
  uint32_t type;
  int32_t order, batch_count;
  uint64_t rows, cols;
  int64_t ld;
};
struct Preference {
  uint32_t magic;
  uint32_t search_mode, reduction_mask;
  uint32_t align_a, align_b, align_c, align_d;
  uint64_t max_workspace;
};
struct Algorithm {
  uint32_t magic;
  int32_t id;
  uint32_t tile, stages;
  int32_t split_k;
  uint16_t in, out, arch;
  uint16_t align_a, align_b, align_d;
};
static_assert(sizeof(Operation) <= sizeof(cublasLtMatmulDescOpaque_t));
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t));
static_assert(sizeof(Preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t));
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

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

// Null unless it was initialised.
template <typename T, typename Opaque>
const T* open(const Opaque* opaque, uint32_t magic) {
  const auto* inside = reinterpret_cast<const T*>(opaque);
  return opaque == nullptr || inside->magic != magic ? nullptr : inside;
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

bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// A product without addresses: whether the device can do it at all.
struct Judged {
  cublasStatus_t status = CUBLAS_STATUS_INVALID_VALUE;
  CublasLtProduct product;
};

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
