// Activations to FP8 (e4m3) with one float32 scale per token and 128 columns, laid out as
// cuBLASLt's VEC128 scale mode reads them: token index contiguous (cuBLASLt documentation, "1D
// block scaling for FP8"; this is the transpose of the [T, k / 128] that frameworks keep).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/base/tensor.h"

namespace shoal {

inline constexpr int kQuantGroup = 128;

// x[t, 128 g + i] ~ q[t, 128 g + i] * scales[g * padded_tokens + t], the scale being the group's
// absolute maximum over 448 (the largest e4m3), so that the largest element becomes +-448.
//   x       [T, k] F32 | BF16, may be strided in rows; any k, the last group may be short
//   q       [padded_tokens, k] e4m3, dense; rows past T become 0
//   scales  [ceil(k / 128), padded_tokens] F32; those of rows past T become 1
// padded_tokens >= T: the next multiple of 4 or more, as cuBLASLt demands. A group of zeros gets a
// small positive scale; NaN and infinity come out as NaN of the product. Launches on `stream`,
// allocates nothing, can be captured. Zero padded_tokens or k: does nothing.
void quantize_1x128(const Tensor& x, void* q, float* scales, int64_t padded_tokens,
                    cudaStream_t stream);

}  // namespace shoal
