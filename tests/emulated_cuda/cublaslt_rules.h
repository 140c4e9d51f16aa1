// cublaslt_rules.h: what lies in cuBLASLt's opaque structs here, and which products there are.
#pragma once

#include <cublasLt.h>

#include <atomic>
#include <cstdint>

#include "cublaslt_product.h"

namespace shoal::emulated::lt {

inline std::atomic<int64_t> descriptor_calls{0};

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

// Null unless it was initialised.
template <typename T, typename Opaque>
const T* open(const Opaque* opaque, uint32_t magic) {
  const auto* inside = reinterpret_cast<const T*>(opaque);
  return opaque == nullptr || inside->magic != magic ? nullptr : inside;
}

inline bool aligned(const void* p, size_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// A product without addresses: whether the device can do it at all.
struct Judged {
  cublasStatus_t status = CUBLAS_STATUS_INVALID_VALUE;
  CublasLtProduct product;
};

Judged judge(int arch, const cublasLtMatmulDescOpaque_t* operation,
             const cublasLtMatrixLayoutOpaque_t* a, const cublasLtMatrixLayoutOpaque_t* b,
             const cublasLtMatrixLayoutOpaque_t* c, const cublasLtMatrixLayoutOpaque_t* d);

size_t workspace_of(const Algorithm& algorithm, const CublasLtProduct& product);

// Whether the algorithm (null: none) can run the product on this architecture.
cublasStatus_t check_algorithm(const Algorithm* algorithm, int arch,
                               const CublasLtProduct& product);

}  // namespace shoal::emulated::lt
