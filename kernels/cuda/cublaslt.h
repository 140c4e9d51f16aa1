// CublasLt: dense products through NVIDIA's library. A call is described by a key; the first of its
// kind asks the library for an algorithm and keeps that and all descriptors (a plan); later ones
// only launch.
//
// A row-major y[T, n] = x[T, k] W[n, k]^T is to the library, which counts in columns, D[n, T] =
// A[k, n]^T B[k, T] with A = W and B = x: "TN", the one form that its FP8 kernels have.
//
// One thread calls, the one that drives the device. Everything is issued on the device's stream, so
// that one workspace serves all plans. Plans can be made and used while a graph is captured:
// nothing is allocated after the constructor but what the caller's scratch needs to grow by.
#pragma once

#include <cublasLt.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/workspace.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/quantized_twin.h"

namespace shoal {

class CublasLt {
 public:
  // Throws DeviceFault when the library does not start or its workspace does not fit.
  explicit CublasLt(CudaDevice& device);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;

  // FP8 weights of 128x128 blocks on sm_90: the activations are rounded to FP8 too, per token and
  // 128 columns, as DeepSeek's own inference does. On by default where the chip has it; off, or on
  // other chips, matmul() does not take FP8 weights.
  void set_fp8_gemm(bool on) { fp8_gemm_ = on; }
  bool fp8_gemm() const { return fp8_gemm_ && device_.arch() == 90; }

  // out = x W^T (+ bias), and true; or false, and nothing was issued: the caller has another way.
  // Taken:
  //   x BF16, W BF16        out BF16 | F32
  //   x F32,  W F32         out F32, in full float32 (no TF32)
  //   x BF16, W F8E4M3      out BF16 | F32, see set_fp8_gemm; shards must begin at a block. Scales
  //   whose
  //                         rows are roundup(k / 128, 4) apart, the last one being whole too, are
  //                         used where they lie; others are copied at each call
  // when pointers and rows are 16-byte aligned, rows dense, and the library has an algorithm. x and
  // out may be strided in rows. bias is F32. Throws DeviceFault when the library fails.
  // twin: takes x's FP8 from there if it holds it, and leaves it there; without one it is in
  // scratch.
  bool matmul(const Tensor& x,     // [T, k]
              const Weight& w,     // [n, k]
              const Tensor& bias,  // [n] F32, or undefined
              const Tensor& out,   // [T, n]
              Workspace& scratch, QuantizedTwin* twin = nullptr);

  // Times the library's first candidates for this product on the device and keeps the fastest for
  // all products of its bucket; later calls of the bucket multiply only. Leaves the product in out.
  // Waits for the device: never in a step.
  bool tune(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out,
            Workspace& scratch, QuantizedTwin* twin = nullptr);

  // One line per plan: the product, then algorithm id, tile, stages, split-k, workspace, waves.
  std::string describe() const;

  // Tuned algorithms on disk; they are good for one GPU model and one version of the library.
  // save() throws InvalidInput when the file cannot be written. load() reads before plans are made;
  // a file that is missing, damaged or of another machine is ignored with one logged line. Returns
  // how many.
  void save(const std::string& path) const;
  size_t load(const std::string& path);

  // What decides about an algorithm. T is rounded up to one of eight sizes per power of two: a plan
  // serves all T of its bucket.
  struct Key {
    cudaDataType_t in = CUDA_R_32F, out = CUDA_R_32F;
    bool bias = false;
    int64_t n = 0, k = 0, tokens = 0;                    // tokens: of the bucket
    int64_t ld_x = 0, ld_w = 0, ld_out = 0;              // elements
    int32_t align_x = 16, align_w = 16, align_out = 16;  // bytes, powers of two up to 256
    auto operator<=>(const Key&) const = default;
    std::string text() const;  // "bfloat16 [64, 7168] x [576, 7168]^T -> float32 + bias"
  };

 private:
  enum class Source { kHeuristic, kTuned, kLoaded };
  struct Plan {
    Key key;
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t w;
    cublasLtMatmulHeuristicResult_t chosen;
    bool ready = false;  // false: the library failed while the plan was made
    bool supported = false;
    Source source = Source::kHeuristic;
    float microseconds = 0;  // of the tuned algorithm
  };
  // A plan at one number of tokens of its bucket.
  struct Shape {
    Plan* plan = nullptr;
    cublasLtMatrixLayoutOpaque_t x, out;
  };
  struct Operands;

  bool take(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out,
            Workspace& scratch, QuantizedTwin* twin, Operands& operands) const;
  bool take_fp8(const Tensor& x, const Weight& w, Workspace& scratch, QuantizedTwin* twin,
                Operands& operands) const;
  Shape& shape_for(const Key& key, int64_t tokens);
  Plan& plan_for(const Key& key);
  void choose(Plan& plan);
  std::vector<cublasLtMatmulHeuristicResult_t> candidates(Plan& plan, int most);
  // Whether the algorithm can run the plan's product with these layouts in our workspace.
  bool check(Plan& plan, cublasLtMatrixLayoutOpaque_t& x, cublasLtMatrixLayoutOpaque_t& out,
             const cublasLtMatmulAlgo_t& algo, cublasLtMatmulHeuristicResult_t& result);
  void run(Shape& shape, const Operands& operands, const Tensor& x, const Tensor& bias,
           const Tensor& out);
  void before(const Operands& operands);
  cublasStatus_t launch(Shape& shape, const Operands& operands, const cublasLtMatmulAlgo_t& algo);
  void after(const Operands& operands, const Tensor& x, const Tensor& bias, const Tensor& out);
  std::string machine() const;

  CudaDevice& device_;
  cublasLtHandle_t handle_ = nullptr;
  Buffer workspace_;
  bool fp8_gemm_ = true;
  std::map<Key, Plan> plans_;
  std::map<std::pair<Key, int64_t>, Shape> shapes_;
  std::map<Key, cublasLtMatmulAlgo_t> loaded_;
};

}  // namespace shoal
