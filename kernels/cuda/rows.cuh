// rows.cuh: what the kernels share that work through rows of activations: packs of eight elements
// in float, whatever the storage type, and how a flat thread index finds its pack.
#pragma once

#include "kernels/base/tensor.h"
#include "kernels/cuda/gpu.h"

namespace shoal::gpu {

// Eight: 16 bytes of a 2-byte type, the widest single access; two of them for float32.
constexpr int kPack = 8;
constexpr int kRowThreads = 256;  // of the kernels with one thread per pack

// Elements [p, p + 8) as float; those at and past `left` are zeros and not read. `aligned`: p and
// all the packs of the tensor lie on 16-byte boundaries (packs_aligned); else, and at the end of a
// row that is no multiple of 8, element by element.
template <typename T>
__device__ __forceinline__ void load_pack(const T* p, int64_t left, bool aligned,
                                          float (&v)[kPack]) {
  if (aligned && left >= kPack) {
    constexpr int kPerLoad = 16 / sizeof(T);
#pragma unroll
    for (int part = 0; part < kPack; part += kPerLoad) {
      const uint4 raw = load_16(p + part);
      T typed[kPerLoad];
      memcpy(typed, &raw, 16);
#pragma unroll
      for (int i = 0; i < kPerLoad; ++i) v[part + i] = to_f32(typed[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPack; ++i) v[i] = i < left ? to_f32(p[i]) : 0.0f;
  }
}

// The reverse; elements at and past `left` are not written.
template <typename T>
__device__ __forceinline__ void store_pack(T* p, int64_t left, bool aligned,
                                           const float (&v)[kPack]) {
  if (aligned && left >= kPack) {
    constexpr int kPerStore = 16 / sizeof(T);
#pragma unroll
    for (int part = 0; part < kPack; part += kPerStore) {
      T typed[kPerStore];
#pragma unroll
      for (int i = 0; i < kPerStore; ++i) typed[i] = from_f32<T>(v[part + i]);
      uint4 raw;
      memcpy(&raw, typed, 16);
      store_16(p + part, raw);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (i < left) p[i] = from_f32<T>(v[i]);
    }
  }
}

struct Quotient {
  int64_t quotient, rest;
};
// i / n and i % n for i >= 0, n > 0. A 64-bit division is some 70 instructions, a 32-bit one 20.
__device__ __forceinline__ Quotient divide(int64_t i, int64_t n) {
  if (((i | n) >> 32) == 0) {
    const auto a = static_cast<uint32_t>(i), b = static_cast<uint32_t>(n);
    return {a / b, a % b};
  }
  return {i / n, i % n};
}

__device__ __forceinline__ int64_t flat_thread() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

// Whether every pack of every row begins on a 16-byte boundary.
inline bool packs_aligned(const Tensor& t) {
  const int64_t size = dtype_size(t.dtype);
  if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0) return false;
  for (int d = 0; d + 1 < t.rank; ++d) {
    if (t.shape[d] > 1 && t.stride[d] * size % 16 != 0) return false;
  }
  return true;
}

inline int64_t packs_of(int64_t dim) { return (dim + kPack - 1) / kPack; }

// The grid of a kernel with one thread per item.
inline dim3 grid_for(int64_t items, int threads = kRowThreads) {
  const int64_t blocks = (items + threads - 1) / threads;
  SHOAL_CHECK(blocks <= 0x7fffffff, "{} items are more than a grid holds", items);
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace shoal::gpu
