// QuantizedTwin: the activation that was quantised last (quantize.h), beside the original.
// gate_proj and up_proj, q_a_proj and kv_a_proj read the same rows and share one quantisation;
// norms and silu_mul leave the twin of what they write in the pass that writes it, where an FP8
// product has been seen to follow.
//
// A twin holds for as long as nothing is issued to the device but through a Renewal: whoever issues
// work asks CudaDevice for its stream and is counted there, so that no verb, copy or collective can
// change the original (or come to lie at its address) behind the twin's back.
#pragma once

#include <set>

#include "kernels/base/workspace.h"
#include "kernels/cuda/cuda_device.h"

namespace shoal {

struct QuantizedRows {
  Tensor codes;   // [padded T, k] F8E4M3
  Tensor scales;  // [k / 128, padded T] F32
};

// The same for a kernel that fills them (quantize.cuh); without codes it has nothing to fill.
struct TwinView {
  uint8_t* codes = nullptr;
  float* scales = nullptr;
  int64_t padded_rows = 0;
};

class QuantizedTwin {
 public:
  explicit QuantizedTwin(CudaDevice& device)
      : device_(device), memory_(device, size_t{1} << 20, MemoryUse::kScratch) {}

  // An FP8 product of rows of k elements was run: others will follow.
  void expect(int64_t k) { widths_.insert(k); }
  // Whether rows like these go to an FP8 product, as far as was seen.
  bool wanted(const Tensor& x) const;

  // room(), if it is wanted, for a kernel that is about to write x; keep() follows its launch.
  TwinView room_if_wanted(const Tensor& x);
  // Memory for the twin of x, which holds from keep() on. What was held before is forgotten.
  QuantizedRows room(const Tensor& x);
  // What room() gave has been issued to be filled with x as it is now.
  void keep(const Tensor& x);
  bool holds(const Tensor& x) const;
  const QuantizedRows& rows() const { return rows_; }

  // Around a verb that reads x and does not write it: if x was held it is held afterwards too.
  class Renewal {
   public:
    Renewal(QuantizedTwin& twin, const Tensor& x) : twin_(twin), x_(x), held_(twin.holds(x)) {}
    ~Renewal() {
      if (held_) twin_.keep(x_);
    }
    Renewal(const Renewal&) = delete;

   private:
    QuantizedTwin& twin_;
    const Tensor x_;
    const bool held_;
  };

 private:
  CudaDevice& device_;
  Workspace memory_;  // of one twin at a time: as large as the largest that was seen
  std::set<int64_t> widths_;
  Tensor x_;  // undefined: none
  uint64_t issued_ = 0;
  QuantizedRows rows_;
};

}  // namespace shoal
