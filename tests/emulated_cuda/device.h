// device.h: the host compiler's half of kernels/cuda/gpu.h, which includes it: CUDA's device vocabulary
// and Shoal's own, executed by fibers (block.h). README.md says how, and what it does not find.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "emulated_cuda/device_functions.h"
#include "kernels/cuda/cuda_check.h"

// One block runs at a time on an OS thread, so that the thread's own copy of a variable is the block's.
#undef __shared__
#define __shared__ thread_local
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace shoal::emulated {

struct Fiber;

struct AsyncCopy {
  void* to;
  const void* from;  // nullptr: zeros
  int group;
  size_t bytes;
};

// One CUDA thread of the block that runs on this OS thread.
struct Thread {
  uint3 thread_idx, block_idx;
  dim3 block_dim, grid_dim;
  unsigned lane, warp;
  std::byte* dynamic_smem;
  int open_group = 0;  // of cp.async
  std::vector<AsyncCopy> copies;
  // What follows is the scheduler's.
  Fiber* fiber = nullptr;
  Thread* next = nullptr;
  const char* waits_at = nullptr;  // nullptr: not waiting
  unsigned waits_with = 0;         // lanes it waits for, of a warp collective
};

// constinit: the compiler then reads it directly, without a call that asks whether it is initialised.
extern constinit thread_local Thread* current;

// Ends the kernel: its device has this error from now on. The report names the block and thread.
[[noreturn]] void fail(cudaError_t error, const std::string& what);
[[noreturn]] void fail_misaligned(const void* p, size_t alignment);

// One meeting of the lanes of `mask` at a warp collective: every lane hands in its operand; the last one
// runs combine(operands, mask), operands indexed by lane, which writes all lanes' results into them.
// `what` names it in reports. Lanes that meet must bring the same mask and combine.
using Combine = void (*)(void* const* operands, unsigned mask);
void meet(unsigned mask, void* operand, Combine combine, const char* what);

// The barrier of all threads of the block. Returns how many of them brought true.
int barrier(bool predicate, const char* what);

void yield();  // lets other threads of the block run; no progress of this one for the deadlock report

// What a launch may have of dynamic shared memory without asking. A real one has 48 KiB less the kernel's static
// shared memory, which is not known here: the rest is for that.
constexpr size_t kUnaskedSmem = 32 * 1024;

cudaError_t launch_kernel(const void* kernel, dim3 grid, dim3 block, size_t dynamic_smem,
                          cudaStream_t stream, std::function<void()> thread_body);

template <typename Visit>
inline void for_lanes(unsigned mask, const Visit& visit) {
  for (; mask != 0; mask &= mask - 1) visit(__builtin_ctz(mask));
}

template <typename T>
struct Shuffle {
  T value, result;
  int source;
};

template <typename T>
void combine_shuffle(void* const* operands, unsigned mask) {
  for_lanes(mask, [&](int lane) {
    auto* mine = static_cast<Shuffle<T>*>(operands[lane]);
    if (mask >> mine->source & 1) {
      mine->result = static_cast<Shuffle<T>*>(operands[mine->source])->value;
    } else {
      memset(&mine->result, 0xff, sizeof(T));  // a lane that takes no part: undefined
    }
  });
}

template <typename T>
T shuffle(unsigned mask, T value, int source, const char* what) {
  static_assert(std::is_arithmetic_v<T>);
  Shuffle<T> operand{value, T(), source};
  meet(mask, &operand, combine_shuffle<T>, what);
  return operand.result;
}

struct Vote {
  bool predicate;
  unsigned result;
};
void combine_ballot(void* const* operands, unsigned mask);

inline unsigned ballot(unsigned mask, bool predicate, const char* what) {
  Vote operand{predicate, 0};
  meet(mask, &operand, combine_ballot, what);
  return operand.result;
}

struct Match {
  uint64_t value;
  unsigned result;
};
void combine_match(void* const* operands, unsigned mask);

template <typename T>
struct Reduction {
  T value;
};

// The butterfly of gpu.h, which leaves the same bits on all lanes.
template <typename T, bool kMax>
void combine_reduction(void* const* operands, unsigned) {
  T values[32];
  for (int i = 0; i < 32; ++i) values[i] = static_cast<Reduction<T>*>(operands[i])->value;
  for (int offset = 16; offset > 0; offset /= 2) {
    for (int i = 0; i < offset; ++i) {
      const T other = values[i + offset];
      if constexpr (kMax) {
        values[i] = other > values[i] ? other : values[i];
      } else {
        values[i] = static_cast<T>(values[i] + other);
      }
    }
  }
  for (int i = 0; i < 32; ++i) static_cast<Reduction<T>*>(operands[i])->value = values[0];
}

// Tensor-core operands (tensor_core.cpp).
struct Mma {
  float* d;
  const uint32_t *a, *b;
};
void combine_mma_m16n8k16_bf16(void* const* operands, unsigned mask);
struct LoadMatrix {
  uint16_t row[8];
  uint32_t* out;
};
void combine_ldmatrix_x4(void* const* operands, unsigned mask);
void combine_ldmatrix_x4_trans(void* const* operands, unsigned mask);

}  // namespace shoal::emulated

// ---- CUDA's own names ------------------------------------------------------------------------------

#define threadIdx (::shoal::emulated::current->thread_idx)
#define blockIdx (::shoal::emulated::current->block_idx)
#define blockDim (::shoal::emulated::current->block_dim)
#define gridDim (::shoal::emulated::current->grid_dim)
constexpr int warpSize = 32;

inline void __syncthreads() { shoal::emulated::barrier(false, "__syncthreads"); }
inline int __syncthreads_count(int predicate) {
  return shoal::emulated::barrier(predicate != 0, "__syncthreads_count");
}
inline int __syncthreads_or(int predicate) {
  return shoal::emulated::barrier(predicate != 0, "__syncthreads_or") > 0;
}
inline int __syncthreads_and(int predicate) {
  return shoal::emulated::barrier(predicate == 0, "__syncthreads_and") == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  shoal::emulated::meet(mask, nullptr, [](void* const*, unsigned) {}, "__syncwarp");
}

// Lanes beyond the segment of `width` keep their own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = static_cast<int>(shoal::emulated::current->lane) & ~(width - 1);
  return shoal::emulated::shuffle(mask, value, first | (source & (width - 1)), "__shfl_sync");
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = static_cast<int>(shoal::emulated::current->lane), first = lane & ~(width - 1);
  const int source = lane - static_cast<int>(delta);
  return shoal::emulated::shuffle(mask, value, source < first ? lane : source, "__shfl_up_sync");
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = static_cast<int>(shoal::emulated::current->lane), last = lane | (width - 1);
  const int source = lane + static_cast<int>(delta);
  return shoal::emulated::shuffle(mask, value, source > last ? lane : source, "__shfl_down_sync");
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = static_cast<int>(shoal::emulated::current->lane), last = lane | (width - 1);
  const int source = lane ^ lane_mask;
  return shoal::emulated::shuffle(mask, value, source > last ? lane : source, "__shfl_xor_sync");
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return shoal::emulated::ballot(mask, predicate != 0, "__ballot_sync");
}
inline int __any_sync(unsigned mask, int predicate) {
  return shoal::emulated::ballot(mask, predicate != 0, "__any_sync") != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return shoal::emulated::ballot(mask, predicate == 0, "__all_sync") == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  shoal::emulated::Match operand{0, 0};
  memcpy(&operand.value, &value, sizeof(T));
  shoal::emulated::meet(mask, &operand, shoal::emulated::combine_match, "__match_any_sync");
  return operand.result;
}
inline void __nanosleep(unsigned) { shoal::emulated::yield(); }
[[noreturn]] inline void __trap() { shoal::emulated::fail(cudaErrorLaunchFailure, "__trap()"); }

// ---- Shoal's names: see gpu.h for what they mean ---------------------------------------------------

// Poisoned at the start of every block; reads past the declared size meet a guard page.
#define SHOAL_DYN_SMEM(T, name) \
  T* name = reinterpret_cast<T*>(::shoal::emulated::current->dynamic_smem)

namespace shoal::gpu {

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t dynamic_smem,
            cudaStream_t stream, const Args&... args) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (dynamic_smem > emulated::kUnaskedSmem) {
    SHOAL_CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(dynamic_smem)));
  }
  emulated::launch_kernel(
      function, grid, block, dynamic_smem, stream,
      [kernel, values = std::tuple<std::decay_t<Params>...>(static_cast<Params>(args)...)] {
        std::apply(kernel, values);
      });
  SHOAL_CUDA_CHECK(cudaGetLastError());
}

inline void check_alignment(const void* p, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) [[unlikely]] {
    emulated::fail_misaligned(p, alignment);
  }
}

template <typename T>
T warp_sum(T value) {
  emulated::Reduction<T> operand{value};
  emulated::meet(0xffffffffu, &operand, emulated::combine_reduction<T, false>, "warp_sum");
  return operand.value;
}
template <typename T>
T warp_max(T value) {
  emulated::Reduction<T> operand{value};
  emulated::meet(0xffffffffu, &operand, emulated::combine_reduction<T, true>, "warp_max");
  return operand.value;
}

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::Mma operand{d, a, b};
  emulated::meet(0xffffffffu, &operand, emulated::combine_mma_m16n8k16_bf16, "mma_m16n8k16_bf16");
}
inline void ldmatrix_x4(uint32_t (&out)[4], const void* smem_row) {
  check_alignment(smem_row, 16);
  emulated::LoadMatrix operand{{}, out};
  memcpy(operand.row, smem_row, 16);
  emulated::meet(0xffffffffu, &operand, emulated::combine_ldmatrix_x4, "ldmatrix_x4");
}
inline void ldmatrix_x4_trans(uint32_t (&out)[4], const void* smem_row) {
  check_alignment(smem_row, 16);
  emulated::LoadMatrix operand{{}, out};
  memcpy(operand.row, smem_row, 16);
  emulated::meet(0xffffffffu, &operand, emulated::combine_ldmatrix_x4_trans, "ldmatrix_x4_trans");
}

// The bytes land at the wait. Until then the target holds NaN, so that a reader who does not wait and
// one whom the copy overtakes (no barrier before the buffer's reuse) both show.
template <size_t bytes>
void start_copy(void* smem, const void* global, bool valid) {
  check_alignment(smem, bytes);
  if (valid) check_alignment(global, bytes);
  memset(smem, 0xff, bytes);
  emulated::Thread& self = *emulated::current;
  self.copies.push_back({smem, valid ? global : nullptr, self.open_group, bytes});
}
inline void cp_async_16(void* smem, const void* global, bool valid = true) {
  start_copy<16>(smem, global, valid);
}
inline void cp_async_4(void* smem, const void* global, bool valid = true) {
  start_copy<4>(smem, global, valid);
}
inline void cp_async_commit() { ++emulated::current->open_group; }
template <int pending>
void cp_async_wait() {
  emulated::Thread& self = *emulated::current;
  size_t done = 0;
  for (; done < self.copies.size(); ++done) {
    const emulated::AsyncCopy& copy = self.copies[done];
    if (copy.group >= self.open_group - pending) break;
    if (copy.from == nullptr) {
      memset(copy.to, 0, copy.bytes);
    } else {
      memcpy(copy.to, copy.from, copy.bytes);
    }
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

inline uint4 load_stream_16(const void* global) {
  check_alignment(global, 16);
  return *static_cast<const uint4*>(global);
}

inline uint32_t ld_acquire(const uint32_t* flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
inline void st_release(uint32_t* flag, uint32_t value) {
  __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}
inline void st_relaxed(uint32_t* word, uint32_t value) {
  __atomic_store_n(word, value, __ATOMIC_RELAXED);
}
inline void spin_pause() { emulated::yield(); }
inline uint64_t nanoseconds() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace shoal::gpu
