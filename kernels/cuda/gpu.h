// gpu.h: the device-side vocabulary of the kernels, and how they are launched. The only file that holds
// inline PTX. It has two halves: this one for nvcc, and tests/emulated_cuda/device.h, which supplies
// the same names (and CUDA's own: threadIdx, __syncthreads, __shfl_*_sync, ...) for the host compiler.
//
// Rules that keep a kernel runnable in both (tests/emulated_cuda/README.md says why):
//  - Arithmetic in float; bfloat16, half and e4m3 are storage: to_f32() and from_f32<T>().
//  - Static shared memory by __shared__, dynamic by SHOAL_DYN_SMEM(T, name), one buffer per kernel.
//  - No return before a collective of the block or warp; warp collectives name exact masks.
//  - Memory that another device, block or the host polls goes through ld_acquire / st_release (or
//    st_relaxed) / spin_pause.
//  - No __device__ or __constant__ globals, no grid-wide synchronisation, no atomics whose order shows.
//  - sm_80 is the floor; anything newer is a peer chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef SHOAL_CUDA_EMULATED
#include <emulated_cuda/device.h>
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#endif

#include "kernels/cuda/cuda_check.h"

namespace shoal::gpu {

using bf16 = __nv_bfloat16;
using e4m3 = __nv_fp8_e4m3;

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;
// What an sm_80 block may have is 163 KiB, sm_86 and sm_89 99 KiB, sm_90 and sm_100 227 KiB.
constexpr size_t kPortableSmem = 99 * 1024;

// ---- Storage types -----------------------------------------------------------------------------

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f32(e4m3 x) { return static_cast<float>(x); }

template <typename T>
__device__ __forceinline__ T from_f32(float x) {  // to nearest even; e4m3 saturates at 448
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return T(x);
  }
}

// Two floats as a pair of bfloat16 in one register, `low` in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const bf16 a = __float2bfloat16_rn(low), b = __float2bfloat16_rn(high);
  uint16_t lo, hi;
  memcpy(&lo, &a, 2);
  memcpy(&hi, &b, 2);
  return static_cast<uint32_t>(lo) | (static_cast<uint32_t>(hi) << 16);
}

#ifndef SHOAL_CUDA_EMULATED

// ---- Launch ------------------------------------------------------------------------------------

// kernel<<<grid, block, dynamic_smem, stream>>>(args...). Arguments are copied. Throws DeviceFault when
// the launch itself is refused; faults of the kernel show at the next synchronisation.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t dynamic_smem,
            cudaStream_t stream, const Args&... args) {
  // Who has not asked gets 48 KiB, static shared memory included: no kernel has 16 KiB of that beside dynamic.
  constexpr size_t kUnasked = 32 * 1024;
  if (dynamic_smem > kUnasked) {
    SHOAL_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(dynamic_smem)));
  }
  kernel<<<grid, block, dynamic_smem, stream>>>(static_cast<Params>(args)...);
  SHOAL_CUDA_CHECK(cudaGetLastError());
}

// Declares `name` as a T* to the block's dynamic shared memory, 16-byte aligned.
#define SHOAL_DYN_SMEM(T, name)                                  \
  extern __shared__ __align__(16) unsigned char shoal_dyn_smem[]; \
  T* name = reinterpret_cast<T*>(shoal_dyn_smem)

// ---- Warp collectives (all 32 lanes) -----------------------------------------------------------

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullMask, value, offset);
  }
  return value;
}

template <typename T>
__device__ __forceinline__ T warp_max(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kFullMask, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// ---- Tensor cores: PTX ISA, "Matrix Fragments for mma.m16n8k16" --------------------------------

// d += a b, one warp: a 16x16 row-major, b 16x8 column-major (bfloat16), d 16x8 (float). With
// g = lane / 4 and t = lane % 4 a lane holds
//   a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..]
//   b[0] = B[2t..][g], b[1] = B[2t+8..][g]
//   d[0..1] = D[g][2t..], d[2..3] = D[g+8][2t..]
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit elements: lane 8i + r gives the address of row r of matrix i in shared
// memory (16-byte aligned); lane 4r + c receives elements 2c and 2c + 1 of row r of matrix i in out[i].
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* smem_row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(smem_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// The same, each 8x8 matrix transposed on the way.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&out)[4], const void* smem_row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(smem_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// ---- Asynchronous copies, global to shared -----------------------------------------------------

// 16 bytes, both sides 16-byte aligned; zeros when !valid (`global` is then not read).
__device__ __forceinline__ void cp_async_16(void* smem, const void* global, bool valid = true) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(global), "r"(bytes)
               : "memory");
}
// 4 bytes, the same.
__device__ __forceinline__ void cp_async_4(void* smem, const void* global, bool valid = true) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(address), "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's groups are under way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- Streaming reads: weights are read once per step and should not push activations out of L2 -----

// 16 bytes, 16-byte aligned, past L1, evicted first.
__device__ __forceinline__ uint4 load_stream_16(const void* global) {
  return __ldcs(static_cast<const uint4*>(global));
}

// ---- Flags between devices ----------------------------------------------------------------------

__device__ __forceinline__ uint32_t ld_acquire(const uint32_t* flag) {  // system scope
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ __forceinline__ void st_release(uint32_t* flag, uint32_t value) {  // system scope
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
// Orders nothing: for what the host reads as a hint. A release waits for a fence, about a microsecond.
__device__ __forceinline__ void st_relaxed(uint32_t* word, uint32_t value) {  // system scope
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
__device__ __forceinline__ void spin_pause() { __nanosleep(20); }
__device__ __forceinline__ uint64_t nanoseconds() {  // of a clock that runs while a kernel spins
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

#endif  // SHOAL_CUDA_EMULATED

// 16 bytes of plain memory. REQUIRES: 16-byte alignment (the emulation checks).
__device__ __forceinline__ uint4 load_16(const void* p) {
#ifdef SHOAL_CUDA_EMULATED
  check_alignment(p, 16);
#endif
  return *static_cast<const uint4*>(p);
}
__device__ __forceinline__ void store_16(void* p, uint4 value) {
#ifdef SHOAL_CUDA_EMULATED
  check_alignment(p, 16);
#endif
  *static_cast<uint4*>(p) = value;
}

// Sum over the block, on all threads. `scratch` is shared memory of 32 elements; the block must have a
// multiple of 32 threads in x only. The order of additions depends on the block's size alone.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  value = warp_sum(value);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = warp_sum(lane < warps ? scratch[lane] : T(0));
  __syncthreads();  // the next use of scratch may begin
  return value;
}

template <typename T>
__device__ __forceinline__ T block_max(T value, T* scratch) {
  value = warp_max(value);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = warp_max(scratch[lane < warps ? lane : 0]);
  __syncthreads();
  return value;
}

}  // namespace shoal::gpu
