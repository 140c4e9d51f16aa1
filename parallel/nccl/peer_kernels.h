// The kernels of PeerAllReduce, as host calls. T is float or gpu::bf16.
#pragma once

#include "parallel/nccl/peer_all_reduce.h"

namespace shoal {

constexpr int kPeerBlocks = 64;  // most blocks of a launch

template <typename T>
void launch_one_shot(const PeerMemory& memory, T* x, int64_t elements, cudaStream_t stream);
template <typename T>
void launch_two_shot(const PeerMemory& memory, T* x, int64_t elements, cudaStream_t stream);

template <typename T>
struct PeerNormArguments {
  const T* x;  // [T, hidden], rows x_stride apart; the others likewise
  T* residual;
  const float* weight;  // [hidden]
  T* out;
  int64_t x_stride, residual_stride, out_stride;
  int64_t rows, hidden;
  float eps;
  bool vectors;  // every row begins at a multiple of 16 bytes
};
template <typename T>
void launch_add_rms_norm(const PeerMemory& memory, const PeerNormArguments<T>& arguments,
                         cudaStream_t stream);

}  // namespace shoal
