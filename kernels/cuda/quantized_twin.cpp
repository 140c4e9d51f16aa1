#include "kernels/cuda/quantized_twin.h"

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/quantize.h"

namespace shoal {

bool QuantizedTwin::wanted(const Tensor& x) const {
  return x.rank == 2 && x.dtype == DType::kBF16 && x.dim(0) > kFewRows &&
         x.dim(1) % kQuantGroup == 0 && widths_.count(x.dim(1)) > 0;
}

QuantizedRows QuantizedTwin::room(const Tensor& x) {
  constexpr int64_t kRound = 4;  // of tokens: what cuBLASLt demands of scales
  const int64_t padded = (x.dim(0) + kRound - 1) / kRound * kRound, k = x.dim(1);
  x_ = Tensor();
  memory_.reset();
  rows_.codes = memory_.tensor(DType::kF8E4M3, {padded, k});
  rows_.scales = memory_.tensor(DType::kF32, {(k + kQuantGroup - 1) / kQuantGroup, padded});
  return rows_;
}

TwinView QuantizedTwin::room_if_wanted(const Tensor& x) {
  if (!wanted(x)) return {};
  const QuantizedRows rows = room(x);
  return {rows.codes.as<uint8_t>(), rows.scales.as<float>(), rows.codes.dim(0)};
}

void QuantizedTwin::keep(const Tensor& x) {
  x_ = x;
  issued_ = device_.issued();
}

bool QuantizedTwin::holds(const Tensor& x) const {
  return x_.defined() && issued_ == device_.issued() && x.data == x_.data && x.dtype == x_.dtype &&
         x.rank == x_.rank && x.shape == x_.shape && x.stride == x_.stride;
}

}  // namespace shoal
