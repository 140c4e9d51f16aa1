#include "kernels/cuda/cublaslt.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/cuda/cublaslt_support.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/quantize.h"

namespace shoal {
namespace {

// The library's advice for its workspace: 32 MiB on Hopper and later, 4 MiB before (cuBLAS
// documentation, cublasSetWorkspace). Aligned to 256 bytes, which Device::allocate() is.
size_t workspace_bytes(int arch) { return size_t{arch >= 90 ? 32u : 4u} << 20; }

constexpr int64_t kAlignment = 16;  // bytes: what tensor cores want of pointers and rows
constexpr int64_t kScaleBlock = 128;
constexpr int64_t kScaleRound = 4;  // M, N and the stride of block scales are multiples of it

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int32_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return static_cast<int32_t>(std::min<uintptr_t>(address & (~address + 1), 256));
}

// Eight sizes to a power of two: the grid of an algorithm chosen for the bucket is at most an
// eighth larger than needed, and a server that sees every length up to 8192 makes some 80 plans per
// weight.
int64_t bucket_of(int64_t tokens) {
  if (tokens <= 16) return tokens;
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(tokens)));
  return round_up(tokens, std::max<int64_t>(power / 8, kScaleRound));
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::kF32: return CUDA_R_32F;
    case DType::kBF16: return CUDA_R_16BF;
    case DType::kF8E4M3: return CUDA_R_8F_E4M3;
    default: SHOAL_CHECK(false, "{} has no product in cuBLASLt", dtype_name(dtype)); return {};
  }
}

std::string_view type_name(cudaDataType_t type) {
  switch (type) {
    case CUDA_R_32F: return "float32";
    case CUDA_R_16BF: return "bfloat16";
    default: return "float8_e4m3";
  }
}

[[noreturn]] void throw_cublaslt(cublasStatus_t status, const char* call, const std::string& what) {
  throw DeviceFault(fmt::format("{}: {} ({}) for {}", call, cublasLtGetStatusName(status),
                                cublasLtGetStatusString(status), what));
}

void require(cublasStatus_t status, const char* call, const CublasLt::Key& key) {
  if (status != CUBLAS_STATUS_SUCCESS) [[unlikely]]
    throw_cublaslt(status, call, key.text());
}

template <typename T>
void set(cublasLtMatmulDescOpaque_t& operation, cublasLtMatmulDescAttributes_t attribute, T value,
         const CublasLt::Key& key) {
  require(cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof(value)),
          "cublasLtMatmulDescSetAttribute", key);
}

void init_layout(cublasLtMatrixLayoutOpaque_t& layout, cudaDataType_t type, int64_t rows,
                 int64_t cols, int64_t ld, const CublasLt::Key& key) {
  require(cublasLtMatrixLayoutInit(&layout, type, rows, cols, ld), "cublasLtMatrixLayoutInit", key);
}

// Rows are dense, and `stride` elements apart as far as there is a second one.
bool rows_fit(const Tensor& t, int64_t& stride) {
  stride = t.dim(0) > 1 ? t.stride[0] : t.dim(1);
  return t.stride[1] == 1 && stride >= t.dim(1) && stride <= std::numeric_limits<int32_t>::max() &&
         t.dim(0) <= std::numeric_limits<int32_t>::max();
}

bool rows_aligned(const Tensor& t, int64_t stride) {
  const int64_t size = dtype_size(t.dtype);
  return reinterpret_cast<uintptr_t>(t.data) % kAlignment == 0 && stride * size % kAlignment == 0 &&
         t.dim(1) * size % kAlignment == 0;
}

}  // namespace

struct CublasLt::Operands {
  Key key;
  int64_t tokens = 0;  // columns of the product: padded for FP8
  const void* x = nullptr;
  const void* w = nullptr;
  void* out = nullptr;
  const void* bias = nullptr;  // for the epilogue
  // FP8 only: what is to be quantised (undefined: it is already), and the scales as the library
  // reads them.
  Tensor to_quantize, x_scale, w_scale, w_scale_padded;
  QuantizedTwin* twin = nullptr;  // where the quantised x stays
  Tensor product;  // [tokens, n] F32, where the library cannot write to the output itself
};

std::string CublasLt::Key::text() const {
  return fmt::format("{} [{}, {}] x [{}, {}]^T -> {}{}", type_name(in), tokens, k, n, k,
                     type_name(out), bias ? " + bias" : "");
}

CublasLt::CublasLt(CudaDevice& device) : device_(device) {
  if (const cublasStatus_t status = cublasLtCreate(&handle_); status != CUBLAS_STATUS_SUCCESS) {
    throw_cublaslt(status, "cublasLtCreate", device.name());
  }
  try {
    workspace_ = device.allocate(workspace_bytes(device.arch()));
  } catch (...) {
    cublasLtDestroy(handle_);
    throw;
  }
}

CublasLt::~CublasLt() { cublasLtDestroy(handle_); }

bool CublasLt::take_fp8(const Tensor& x, const Weight& w, Workspace& scratch, QuantizedTwin* twin,
                        Operands& o) const {
  const int64_t n = w.n(), k = w.k();
  if (!fp8_gemm() || x.dtype != DType::kBF16 || w.block_rows != kScaleBlock ||
      w.block_cols != kScaleBlock || w.row_offset != 0 || w.col_offset != 0 ||
      n % kScaleRound != 0) {
    return false;
  }
  o.tokens = round_up(x.dim(0), kScaleRound);
  o.twin = twin;
  QuantizedRows rows;
  if (twin != nullptr && twin->holds(x)) {
    rows = twin->rows();
  } else {
    o.to_quantize = x;
    rows = twin != nullptr
               ? twin->room(x)
               : QuantizedRows{scratch.tensor(DType::kF8E4M3, {o.tokens, k}),
                               scratch.tensor(DType::kF32, {ceil_div(k, kScaleBlock), o.tokens})};
  }
  o.x = rows.codes.data;
  o.x_scale = rows.scales;
  // Rows of scales are a multiple of 4 apart. A loader that allocates them so saves the copy; it is
  // not kept, since a pointer does not say whether the weight behind it is still the same.
  const int64_t padded = round_up(ceil_div(k, kScaleBlock), kScaleRound);
  o.w_scale = w.scale;
  const bool usable =
      (w.scale.stride[0] == padded || (w.scale.dim(0) == 1 && w.scale.dim(1) == padded)) &&
      reinterpret_cast<uintptr_t>(w.scale.data) % kAlignment == 0;
  if (!usable) o.w_scale_padded = scratch.tensor(DType::kF32, {w.scale.dim(0), padded});
  o.key.ld_x = k;
  return true;
}

// Fills operands for a case that the library may take; issues nothing.
bool CublasLt::take(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out,
                    Workspace& scratch, QuantizedTwin* twin, Operands& o) const {
  SHOAL_CHECK(x.rank == 2 && out.rank == 2 && w.k() == x.dim(1) && out.dim(0) == x.dim(0) &&
                  out.dim(1) == w.n() && (!bias.defined() || bias.dtype == DType::kF32),
              "{} x {} -> {}", x.shape_string(), w.data.shape_string(), out.shape_string());
  const DType type = w.data.dtype;
  const bool fp8 = type == DType::kF8E4M3;
  const int64_t n = w.n(), k = w.k();
  if (type != DType::kF32 && type != DType::kBF16 && !fp8) return false;
  if (k == 0 || n == 0) return false;
  if (out.dtype != DType::kF32 && (out.dtype != DType::kBF16 || type == DType::kF32)) return false;
  int64_t ld_x, ld_w, ld_out;
  if (!rows_fit(x, ld_x) || !rows_fit(w.data, ld_w) || !rows_fit(out, ld_out)) return false;
  if (!rows_aligned(w.data, ld_w)) return false;

  o.key.ld_x = ld_x;
  o.tokens = x.dim(0);
  o.x = x.data;
  if (fp8) {
    if (!take_fp8(x, w, scratch, twin, o)) return false;
  } else if (x.dtype != type || !rows_aligned(x, ld_x)) {
    return false;
  }
  // The epilogue adds a bias of the output's type, and with FP8 inputs one of bfloat16 only; ours
  // is float32. (Rounding it would be another result; a second rounding after the product, too.)
  const bool epilogue = bias.defined() && !fp8 && out.dtype == DType::kF32 &&
                        reinterpret_cast<uintptr_t>(bias.data) % kAlignment == 0;
  const bool apart = (bias.defined() && !epilogue) || o.tokens != out.dim(0);
  if (apart) {
    if (n * sizeof(float) % kAlignment != 0) return false;
    o.product = scratch.tensor(DType::kF32, {o.tokens, n});
    ld_out = n;
  } else if (!rows_aligned(out, ld_out)) {
    return false;
  }
  o.w = w.data.data;
  o.out = apart ? o.product.data : out.data;
  o.bias = epilogue ? bias.data : nullptr;
  o.key.in = data_type(type);
  o.key.out = apart ? CUDA_R_32F : data_type(out.dtype);
  o.key.bias = epilogue;
  o.key.n = n;
  o.key.k = k;
  o.key.tokens = bucket_of(o.tokens);
  o.key.ld_w = ld_w;
  o.key.ld_out = ld_out;
  o.key.align_x = alignment_of(o.x);
  o.key.align_w = alignment_of(o.w);
  o.key.align_out = alignment_of(o.out);
  return true;
}

std::vector<cublasLtMatmulHeuristicResult_t> CublasLt::candidates(Plan& plan, int most) {
  const Key& key = plan.key;
  cublasLtMatmulPreferenceOpaque_t preference;
  require(cublasLtMatmulPreferenceInit(&preference), "cublasLtMatmulPreferenceInit", key);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    require(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)),
            "cublasLtMatmulPreferenceSetAttribute", key);
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_.bytes()});
  // Parts of k are added up in float32, not rounded to the output's type one by one.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(key.align_w));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(key.align_x));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(key.align_out));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(key.align_out));

  cublasLtMatrixLayoutOpaque_t x, out;
  init_layout(x, key.in, key.k, key.tokens, key.ld_x, key);
  init_layout(out, key.out, key.n, key.tokens, key.ld_out, key);
  std::vector<cublasLtMatmulHeuristicResult_t> results(most);
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_, &plan.operation, &plan.w, &x, &out, &out, &preference, most, results.data(), &found);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED)
    found = 0;
  else
    require(status, "cublasLtMatmulAlgoGetHeuristic", key);
  results.resize(found);
  std::erase_if(results, [&](const cublasLtMatmulHeuristicResult_t& r) {
    return r.state != CUBLAS_STATUS_SUCCESS || r.workspaceSize > workspace_.bytes();
  });
  return results;
}

bool CublasLt::check(Plan& plan, cublasLtMatrixLayoutOpaque_t& x, cublasLtMatrixLayoutOpaque_t& out,
                     const cublasLtMatmulAlgo_t& algo, cublasLtMatmulHeuristicResult_t& result) {
  result = {};
  const cublasStatus_t status =
      cublasLtMatmulAlgoCheck(handle_, &plan.operation, &plan.w, &x, &out, &out, &algo, &result);
  result.algo = algo;
  return status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= workspace_.bytes();
}

void CublasLt::choose(Plan& plan) {
  const Key& key = plan.key;
  if (const auto saved = loaded_.find(key); saved != loaded_.end()) {
    cublasLtMatrixLayoutOpaque_t x, out;
    init_layout(x, key.in, key.k, key.tokens, key.ld_x, key);
    init_layout(out, key.out, key.n, key.tokens, key.ld_out, key);
    if (check(plan, x, out, saved->second, plan.chosen)) {
      plan.supported = true;
      plan.source = Source::kLoaded;
      return;
    }
  }
  const auto found = candidates(plan, 1);
  plan.supported = !found.empty();
  if (plan.supported) plan.chosen = found[0];
}

CublasLt::Plan& CublasLt::plan_for(const Key& key) {
  Plan& plan = plans_[key];
  if (plan.ready) return plan;
  plan.key = key;
  auto& operation = plan.operation;
  require(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
          "cublasLtMatmulDescInit", key);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, int32_t{CUBLAS_OP_T}, key);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, int32_t{CUBLAS_OP_N}, key);
  // The heuristic looks at the alignment of pointers: stand-ins that promise no more than ours
  // hold.
  const void* somewhere = static_cast<std::byte*>(workspace_.data()) + kAlignment;
  if (key.bias) {
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_BIAS}, key);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, somewhere, key);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t{CUDA_R_32F}, key);
  }
  if (key.in == CUDA_R_8F_E4M3) {
    // FAST_ACCUM stays off: it skips the promotion of partial sums that the scales are applied in.
    set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
        int32_t{CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F}, key);
    set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
        int32_t{CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F}, key);
    set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, somewhere, key);
    set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, somewhere, key);
  }
  init_layout(plan.w, key.in, key.k, key.n, key.ld_w, key);
  choose(plan);
  plan.ready = true;
  return plan;
}

CublasLt::Shape& CublasLt::shape_for(const Key& key, int64_t tokens) {
  Shape& shape = shapes_[{key, tokens}];
  if (shape.plan != nullptr) return shape;
  init_layout(shape.x, key.in, key.k, tokens, key.ld_x, key);
  init_layout(shape.out, key.out, key.n, tokens, key.ld_out, key);
  Plan* plan = &plan_for(key);
  cublasLtMatmulHeuristicResult_t result;
  if (tokens != key.tokens && plan->supported &&
      !check(*plan, shape.x, shape.out, plan->chosen.algo, result)) {
    Key exact = key;
    exact.tokens = tokens;
    plan = &plan_for(exact);
  }
  shape.plan = plan;
  return shape;
}

void CublasLt::before(const Operands& o) {
  if (o.key.in != CUDA_R_8F_E4M3) return;
  if (o.to_quantize.defined()) {
    quantize_1x128(o.to_quantize, const_cast<void*>(o.x), o.x_scale.as<float>(), o.tokens,
                   device_.stream());
  }
  if (o.w_scale_padded.defined()) pad_columns(o.w_scale, o.w_scale_padded, device_.stream());
}

cublasStatus_t CublasLt::launch(Shape& shape, const Operands& o, const cublasLtMatmulAlgo_t& algo) {
  auto& operation = shape.plan->operation;
  // Addresses are the only thing that differs between calls of a plan; they are read at this call.
  if (o.bias != nullptr) set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, o.bias, o.key);
  if (o.x_scale.defined()) {
    const Tensor& w_scale = o.w_scale_padded.defined() ? o.w_scale_padded : o.w_scale;
    set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w_scale.as<const void>(), o.key);
    set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, o.x_scale.as<const void>(), o.key);
  }
  const float one = 1, zero = 0;
  return cublasLtMatmul(handle_, &operation, &one, o.w, &shape.plan->w, o.x, &shape.x, &zero, o.out,
                        &shape.out, o.out, &shape.out, &algo, workspace_.data(), workspace_.bytes(),
                        device_.stream());
}

void CublasLt::after(const Operands& o, const Tensor& x, const Tensor& bias, const Tensor& out) {
  if (o.product.defined()) {
    store_product(o.product, o.key.bias ? Tensor() : bias, out, device_.stream());
  }
  if (o.twin == nullptr) return;
  o.twin->keep(x);
  o.twin->expect(o.key.k);
}

void CublasLt::run(Shape& shape, const Operands& operands, const Tensor& x, const Tensor& bias,
                   const Tensor& out) {
  before(operands);
  require(launch(shape, operands, shape.plan->chosen.algo), "cublasLtMatmul", operands.key);
  after(operands, x, bias, out);
}

bool CublasLt::matmul(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out,
                      Workspace& scratch, QuantizedTwin* twin) {
  Workspace::Scope scope(scratch);
  Operands operands;
  if (!take(x, w, bias, out, scratch, twin, operands)) return false;
  if (operands.tokens == 0) return true;
  Shape& shape = shape_for(operands.key, operands.tokens);
  if (!shape.plan->supported) return false;
  run(shape, operands, x, bias, out);
  return true;
}

bool CublasLt::tune(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out,
                    Workspace& scratch, QuantizedTwin* twin) {
  SHOAL_CHECK(!device_.capturing(), "tuning while a graph is recorded");
  constexpr int kCandidates = 8;
  constexpr int kRepeats = 20;  // a decode product is some 10 us, and events resolve half of one
  Workspace::Scope scope(scratch);
  Operands operands;
  if (!take(x, w, bias, out, scratch, twin, operands)) return false;
  if (operands.tokens == 0) return true;
  Shape& shape = shape_for(operands.key, operands.tokens);
  Plan& plan = *shape.plan;
  if (!plan.supported) return false;
  if (plan.source == Source::kTuned) {  // as for the other layers that have weights of this shape
    run(shape, operands, x, bias, out);
    return true;
  }
  struct Event {
    cudaEvent_t event = nullptr;
    Event() { SHOAL_CUDA_CHECK(cudaEventCreate(&event)); }
    ~Event() { cudaEventDestroy(event); }
  } begin, end;
  before(operands);
  float best = std::numeric_limits<float>::infinity();
  for (const cublasLtMatmulHeuristicResult_t& candidate : candidates(plan, kCandidates)) {
    cublasLtMatmulHeuristicResult_t result;
    if (!check(plan, shape.x, shape.out, candidate.algo, result)) continue;
    // The first call loads the kernel. What the library refuses here, it offered in error.
    if (launch(shape, operands, candidate.algo) != CUBLAS_STATUS_SUCCESS) continue;
    SHOAL_CUDA_CHECK(cudaEventRecord(begin.event, device_.stream()));
    for (int i = 0; i < kRepeats; ++i) {
      require(launch(shape, operands, candidate.algo), "cublasLtMatmul", operands.key);
    }
    SHOAL_CUDA_CHECK(cudaEventRecord(end.event, device_.stream()));
    SHOAL_CUDA_CHECK(cudaEventSynchronize(end.event));
    float milliseconds = 0;
    SHOAL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin.event, end.event));
    if (milliseconds >= best) continue;
    best = milliseconds;
    plan.chosen = candidate;
    plan.source = Source::kTuned;
    plan.microseconds = milliseconds * 1000 / kRepeats;
  }
  after(operands, x, bias, out);
  device_.synchronize();
  // Other sizes of the bucket have not been checked with the new algorithm.
  std::erase_if(shapes_, [&](const auto& entry) {
    return entry.second.plan == &plan && &entry.second != &shape;
  });
  return true;
}

}  // namespace shoal
