// mla_prefill: MLA in the expanded form, one chunk of keys of one sequence folded into a running
// state; begin_state and finish_state around it.
//
// Per query, head and key 2 * (d_qk + d_v) FLOPs (640 in V2 and V3), per query, head and chunk 8 *
// d_v bytes of state in and out: a chunk of 512 keys moves 1 KiB of state for 328 kFLOP, which at
// an H100's rates take about 0.3 and 0.5 ns. Bound by arithmetic (attention_flash.cuh), the more
// the longer chunks are.
//
// prefill_mma_kernel (bfloat16, 128 + 64 and 128): a block takes 128 queries of one head, 8 warps
// of 16, and the keys that its last query sees, 64 at a time; 84 KiB of shared memory. Everything
// else runs in attention_fma.cuh's form. Both take the last queries, which see most keys, first.
#include "kernels/cuda/attention_mla_prefill.cuh"

#include "kernels/cuda/attention_flash.cuh"
#include "kernels/cuda/attention_fma.cuh"
#include "kernels/cuda/attention_paged.cuh"
#include "kernels/cuda/cuda_ops.h"

namespace shoal {
namespace gpu {
namespace {

constexpr int kThreads = 256;

constexpr int kNope = 128, kRope = 64, kValue = 128;
using PrefillFlash = Flash<kNope + kRope, kValue, 8, 1>;

// Grid: (tiles of PrefillFlash::kRows queries, heads).
__global__ void __launch_bounds__(PrefillFlash::kThreads) prefill_mma_kernel(PrefillCall call) {
  using F = PrefillFlash;
  SHOAL_DYN_SMEM(bf16, smem);
  const int64_t first = int64_t{gridDim.x - 1 - blockIdx.x} * F::kRows;
  const int64_t head = blockIdx.y;
  const int lane = threadIdx.x % kWarp, t = lane % 4;
  const bf16* queries[2];
  int num_keys[2];
  int64_t tokens[2];
  RowPair state;
  F::Acc acc = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    tokens[i] = first + F::row0() + lane / 4 + 8 * i;
    queries[i] = nullptr;
    num_keys[i] = 0;
    if (tokens[i] >= call.num_tokens) continue;
    queries[i] = static_cast<const bf16*>(call.q) + tokens[i] * call.q_token + head * call.q_head;
    num_keys[i] = call.keys_of(tokens[i]);
    const int64_t at = tokens[i] * call.stat_token + head;
    state.max[i] = call.row_max[at];
    // The four threads of a row add their sums up at the end: one of them has what was before.
    state.sum[i] = t == 0 ? call.row_sum[at] : 0;
    const float* from = call.acc_row(tokens[i], head) + 2 * t;
#pragma unroll
    for (int n = 0; n < kValue / 8; ++n) {
      const float2 pair = *reinterpret_cast<const float2*>(from + 8 * n);
      acc[n][2 * i] = pair.x;
      acc[n][2 * i + 1] = pair.y;
    }
  }
  __shared__ int maxima[kWarp];
  const int keys = block_max(max(num_keys[0], num_keys[1]), maxima);

  const auto load = [&](int key, int count, bf16* to_keys, bf16* to_values, float*, float*) {
    constexpr int kThreadsPerRow = 8;
    const int c0 = threadIdx.x % kThreadsPerRow;  // of 16 bytes
#pragma unroll
    for (int r = threadIdx.x / kThreadsPerRow; r < F::kKeys; r += F::kThreads / kThreadsPerRow) {
      const bool valid = r < count;
      const int64_t row = valid ? key + r : 0;
      const bf16* kv =
          static_cast<const bf16*>(call.kv) + row * call.kv_token + head * call.kv_head;
      const bf16* k_pe = static_cast<const bf16*>(call.k_pe) + row * call.k_pe_token;
      bf16* const to_key = to_keys + r * F::kKeyPitch;
      bf16* const to_value = to_values + r * F::kValuePitch;
#pragma unroll
      for (int c = 8 * c0; c < kNope; c += 8 * kThreadsPerRow)
        cp_async_16(to_key + c, kv + c, valid);
#pragma unroll
      for (int c = 8 * c0; c < kRope; c += 8 * kThreadsPerRow) {
        cp_async_16(to_key + kNope + c, k_pe + c, valid);
      }
#pragma unroll
      for (int c = 8 * c0; c < kValue; c += 8 * kThreadsPerRow) {
        cp_async_16(to_value + c, kv + kNope + c, valid);
      }
    }
  };
  F::attend(smem, queries, num_keys, 0, keys, call.scale, state, acc, load);

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (tokens[i] >= call.num_tokens) continue;
    float* to = call.acc_row(tokens[i], head) + 2 * t;
#pragma unroll
    for (int n = 0; n < kValue / 8; ++n) store_pair(to + 8 * n, acc[n][2 * i], acc[n][2 * i + 1]);
    if (t == 0) {
      const int64_t at = tokens[i] * call.stat_token + head;
      call.row_max[at] = state.max[i];
      call.row_sum[at] = state.sum[i];
    }
  }
}

// Grid: (tiles of kFmaRows queries, heads).
template <typename T>
__global__ void __launch_bounds__(kFmaThreads) prefill_fma_kernel(PrefillCall call) {
  SHOAL_DYN_SMEM(float, smem);
  const int d = call.nope + call.rope;
  const FmaTile fma(smem, d, call.dv, false);
  const int64_t first = int64_t{gridDim.x - 1 - blockIdx.x} * kFmaRows;
  const int64_t head = blockIdx.y;
  const int rows = call.num_tokens - first < kFmaRows ? call.num_tokens - first : kFmaRows;

  int keys = 0;  // of the chunk, that the tile sees
  for (int r = 0; r < rows; ++r) keys = max(keys, call.keys_of(first + r));
  if (threadIdx.x < kFmaRows) {
    const int r = threadIdx.x;
    const int64_t at = (first + r) * call.stat_token + head;
    fma.num_keys[r] = r < rows ? call.keys_of(first + r) : 0;
    fma.row_max[r] = r < rows ? call.row_max[at] : -INFINITY;
    fma.row_sum[r] = r < rows ? call.row_sum[at] : 0;
  }
  stage_rows<T>(fma.q, d, rows, d, [&](int r) {
    return static_cast<const T*>(call.q) + (first + r) * call.q_token + head * call.q_head;
  });
  for (int i = threadIdx.x; i < kFmaRows * call.dv; i += kFmaThreads) {
    const int r = i / call.dv;
    fma.acc[i] = r < rows ? call.acc_row(first + r, head)[i % call.dv] : 0;
  }
  fma_attend(fma, 0, keys, call.scale, [&](int key, int count) {
    const T* kv = static_cast<const T*>(call.kv) + key * call.kv_token + head * call.kv_head;
    const T* k_pe = static_cast<const T*>(call.k_pe) + key * call.k_pe_token;
    stage_rows<T>(fma.keys, fma.key_pitch, count, call.nope,
                  [&](int i) { return kv + i * call.kv_token; });
    stage_rows<T>(fma.keys + call.nope, fma.key_pitch, count, call.rope,
                  [&](int i) { return k_pe + i * call.k_pe_token; });
    stage_rows<T>(fma.values, fma.value_pitch, count, call.dv,
                  [&](int i) { return kv + call.nope + i * call.kv_token; });
  });
  for (int i = threadIdx.x; i < rows * call.dv; i += kFmaThreads) {
    call.acc_row(first + i / call.dv, head)[i % call.dv] = fma.acc[i];
  }
  if (static_cast<int>(threadIdx.x) < rows) {
    const int64_t at = (first + threadIdx.x) * call.stat_token + head;
    call.row_max[at] = fma.row_max[threadIdx.x];
    call.row_sum[at] = fma.row_sum[threadIdx.x];
  }
}

struct StateCall {
  float* acc;      // [T, H, dv] by acc_token, acc_head
  float* row_max;  // [T, H] contiguous
  float* row_sum;
  int64_t acc_token, acc_head;
  void* out;  // [T, H, dv] by out_token, out_head
  int64_t out_token, out_head;
  int64_t rows;  // T * H
  int32_t num_heads, dv;
};

// One warp per row.
__global__ void __launch_bounds__(kThreads) begin_state_kernel(StateCall call) {
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= call.rows) return;
  float* acc =
      call.acc + row / call.num_heads * call.acc_token + row % call.num_heads * call.acc_head;
  for (int c = lane; c < call.dv; c += kWarp) acc[c] = 0;
  if (lane == 0) {
    call.row_max[row] = -INFINITY;
    call.row_sum[row] = 0;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) finish_state_kernel(StateCall call) {
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= call.rows) return;
  const int64_t token = row / call.num_heads, head = row % call.num_heads;
  const float* acc = call.acc + token * call.acc_token + head * call.acc_head;
  T* out = static_cast<T*>(call.out) + token * call.out_token + head * call.out_head;
  const float factor = softmax_inverse(call.row_sum[row]);
  for (int c = lane; c < call.dv; c += kWarp) out[c] = from_f32<T>(acc[c] * factor);
}

void check_state(const AttentionState& state) {
  const auto is_f32 = [](const Tensor& tensor, int rank) {
    return tensor.dtype == DType::kF32 && tensor.rank == rank && tensor.stride[rank - 1] == 1;
  };
  SHOAL_CHECK(is_f32(state.acc, 3) && is_f32(state.row_max, 2) && is_f32(state.row_sum, 2) &&
                  state.row_max.contiguous() && state.row_sum.contiguous() &&
                  state.row_max.dim(0) == state.acc.dim(0) &&
                  state.row_max.dim(1) == state.acc.dim(1) &&
                  state.row_sum.shape == state.row_max.shape,
              "acc {}, row_max {}, row_sum {}", state.acc.shape_string(),
              state.row_max.shape_string(), state.row_sum.shape_string());
}

StateCall state_call(const AttentionState& state) {
  StateCall call{};
  call.acc = state.acc.as<float>();
  call.row_max = state.row_max.as<float>();
  call.row_sum = state.row_sum.as<float>();
  call.acc_token = state.acc.stride[0];
  call.acc_head = state.acc.stride[1];
  call.rows = state.acc.dim(0) * state.acc.dim(1);
  call.num_heads = static_cast<int32_t>(state.acc.dim(1));
  call.dv = static_cast<int32_t>(state.acc.dim(2));
  return call;
}

dim3 state_grid(const StateCall& call) {
  constexpr int kRows = kThreads / kWarp;
  return dim3(static_cast<unsigned>((call.rows + kRows - 1) / kRows));
}

}  // namespace
}  // namespace gpu

void CudaOps::begin_state(const AttentionState& state) {
  gpu::check_state(state);
  const gpu::StateCall call = gpu::state_call(state);
  if (call.rows == 0) return;
  gpu::launch(gpu::begin_state_kernel, gpu::state_grid(call), dim3(gpu::kThreads), 0, stream(),
              call);
}

void CudaOps::finish_state(const AttentionState& state, const Tensor& out) {
  gpu::check_state(state);
  check_activation(out, 3, "out");
  SHOAL_CHECK(out.shape == state.acc.shape, "acc {}, out {}", state.acc.shape_string(),
              out.shape_string());
  gpu::StateCall call = gpu::state_call(state);
  if (call.rows == 0) return;
  call.out = out.data;
  call.out_token = out.stride[0];
  call.out_head = out.stride[1];
  const auto kernel = out.dtype == DType::kBF16 ? gpu::finish_state_kernel<gpu::bf16>
                                                : gpu::finish_state_kernel<float>;
  gpu::launch(kernel, gpu::state_grid(call), dim3(gpu::kThreads), 0, stream(), call);
}

void CudaOps::mla_prefill(const Tensor& q, const Tensor& kv, const Tensor& k_pe,
                          const Tensor& positions, int64_t first_position, float softmax_scale,
                          const AttentionState& state) {
  check_activation(q, 3, "q");
  check_activation(kv, 3, "kv");
  check_activation(k_pe, 2, "k_pe");
  check_i32_on_device(positions, q.dim(0), "positions");
  gpu::check_state(state);
  const int64_t nope = q.dim(2) - k_pe.dim(1);
  SHOAL_CHECK(nope >= 0 && kv.dim(1) == q.dim(1) && kv.dim(0) == k_pe.dim(0) && kv.dim(2) >= nope &&
                  kv.dtype == q.dtype && k_pe.dtype == q.dtype && state.acc.dim(0) == q.dim(0) &&
                  state.acc.dim(1) == q.dim(1) && state.acc.dim(2) == kv.dim(2) - nope &&
                  first_position >= 0 && first_position + kv.dim(0) <= INT32_MAX,
              "q {}, kv {}, k_pe {}, acc {}", q.shape_string(), kv.shape_string(),
              k_pe.shape_string(), state.acc.shape_string());
  if (q.dim(0) == 0 || q.dim(1) == 0 || kv.dim(0) == 0) return;

  const gpu::PrefillCall call{.q = q.data,
                              .kv = kv.data,
                              .k_pe = k_pe.data,
                              .positions = positions.as<int32_t>(),
                              .acc = state.acc.as<float>(),
                              .row_max = state.row_max.as<float>(),
                              .row_sum = state.row_sum.as<float>(),
                              .q_token = q.stride[0],
                              .q_head = q.stride[1],
                              .kv_token = kv.stride[0],
                              .kv_head = kv.stride[1],
                              .k_pe_token = k_pe.stride[0],
                              .acc_token = state.acc.stride[0],
                              .acc_head = state.acc.stride[1],
                              .stat_token = state.row_max.stride[0],
                              .num_tokens = static_cast<int32_t>(q.dim(0)),
                              .num_keys = static_cast<int32_t>(kv.dim(0)),
                              .first_position = static_cast<int32_t>(first_position),
                              .nope = static_cast<int32_t>(nope),
                              .rope = static_cast<int32_t>(k_pe.dim(1)),
                              .dv = static_cast<int32_t>(kv.dim(2) - nope),
                              .scale = softmax_scale * gpu::kLog2e};
  const auto launch_tiles = [&](auto kernel, int rows, int threads, size_t smem) {
    const dim3 grid(static_cast<unsigned>((q.dim(0) + rows - 1) / rows),
                    static_cast<unsigned>(q.dim(1)));
    gpu::launch(kernel, grid, dim3(static_cast<unsigned>(threads)), smem, stream(), call);
  };
  const bool tensor_cores = q.dtype == DType::kBF16 && call.nope == gpu::kNope &&
                            call.rope == gpu::kRope && call.dv == gpu::kValue &&
                            gpu::rows_aligned_16(q) && gpu::rows_aligned_16(kv) &&
                            gpu::rows_aligned_16(k_pe) && gpu::rows_aligned_16(state.acc);
  if (tensor_cores) {
    using F = gpu::PrefillFlash;
    launch_tiles(gpu::prefill_mma_kernel, F::kRows, F::kThreads, F::kSmem);
    return;
  }
  const size_t smem = gpu::FmaTile::bytes(call.nope + call.rope, call.dv, false);
  SHOAL_CHECK(smem <= device_.max_smem(),
              "head dimensions {} and {} need {} bytes of shared memory", q.dim(2), call.dv, smem);
  launch_tiles(
      q.dtype == DType::kBF16 ? gpu::prefill_fma_kernel<gpu::bf16> : gpu::prefill_fma_kernel<float>,
      gpu::kFmaRows, gpu::kFmaThreads, smem);
}

}  // namespace shoal
