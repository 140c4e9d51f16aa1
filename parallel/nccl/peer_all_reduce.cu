// Kernels of PeerAllReduce: one_shot, two_shot, add_rms_norm.
//
// Work is in packs of 16 bytes. A rank copies its tensor into its exported buffer, meets the others
// by flags in their memory, and reads what it needs of their buffers. Block b waits for the blocks
// b of the other ranks only, and they touch the same packs, so blocks need not run at the same
// time.
//
// What bounds it: the hop over NVLink or PCIe (1 to 3 us each way) for small tensors, the link's
// bandwidth from some 256 KB on. Copying first costs a write and a read of local memory, 1 us at
// these sizes, and saves exporting every activation tensor.
//
// Two buffers by turns: a rank that is one launch ahead writes the one that nobody reads. It cannot
// be two ahead, as it would have had to meet this rank, in this rank's next launch, first.
#include "kernels/cuda/gpu.h"
#include "parallel/nccl/peer_kernels.h"

namespace shoal {
namespace {

using namespace gpu;

constexpr int kThreads = 512;

template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));  // elements of 16 bytes

union Pack16 {
  uint4 raw;
  float f32[4];
  uint16_t half_words[8];
};

__device__ __forceinline__ void unpack(uint4 raw, float (&out)[4]) {
  Pack16 pack;
  pack.raw = raw;
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = pack.f32[i];
}
__device__ __forceinline__ void unpack(uint4 raw, float (&out)[8]) {
  Pack16 pack;
  pack.raw = raw;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    out[i] = __uint_as_float(static_cast<uint32_t>(pack.half_words[i]) << 16);
  }
}
__device__ __forceinline__ uint4 pack(const float (&in)[4]) {
  Pack16 result;
#pragma unroll
  for (int i = 0; i < 4; ++i) result.f32[i] = in[i];
  return result.raw;
}
__device__ __forceinline__ uint4 pack(const float (&in)[8]) {
  return make_uint4(pack_bf16(in[0], in[1]), pack_bf16(in[2], in[3]), pack_bf16(in[4], in[5]),
                    pack_bf16(in[6], in[7]));
}

// Elements [i * kPack, (i + 1) * kPack) of n; those beyond are 0.
template <typename T>
__device__ __forceinline__ uint4 load_pack(const T* x, int64_t i, int64_t n, bool vectors) {
  const int64_t first = i * kPack<T>;
  if (vectors && first + kPack<T> <= n) return load_16(x + first);
  float values[kPack<T>];
#pragma unroll
  for (int j = 0; j < kPack<T>; ++j) values[j] = first + j < n ? to_f32(x[first + j]) : 0.0f;
  return pack(values);
}
template <typename T>
__device__ __forceinline__ void store_pack(T* x, int64_t i, int64_t n, bool vectors, uint4 raw) {
  const int64_t first = i * kPack<T>;
  if (vectors && first + kPack<T> <= n) {
    store_16(x + first, raw);
    return;
  }
  float values[kPack<T>];
  unpack(raw, values);
#pragma unroll
  for (int j = 0; j < kPack<T>; ++j) {
    if (first + j < n) x[first + j] = from_f32<T>(values[j]);
  }
}

__device__ __forceinline__ std::byte* buffer_of(const PeerMemory& m, int rank, uint32_t epoch) {
  return m.data[rank] + (epoch & 1) * m.buffer_bytes;
}
__device__ __forceinline__ uint4* pack_of(const PeerMemory& m, int rank, uint32_t epoch,
                                          int64_t i) {
  return reinterpret_cast<uint4*>(buffer_of(m, rank, epoch)) + i;
}

// The sum of all ranks' pack i, in rank order. All loads are issued before the first addition.
template <typename T>
__device__ __forceinline__ void sum_packs(const PeerMemory& m, uint32_t epoch, int64_t i,
                                          float (&sum)[kPack<T>]) {
  uint4 raw[kMaxPeers];
#pragma unroll
  for (int r = 0; r < kMaxPeers; ++r) {
    if (r < m.size) raw[r] = load_16(pack_of(m, r, epoch, i));
  }
  unpack(raw[0], sum);
#pragma unroll
  for (int r = 1; r < kMaxPeers; ++r) {
    if (r < m.size) {
      float values[kPack<T>];
      unpack(raw[r], values);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) sum[j] += values[j];
    }
  }
}

__device__ __forceinline__ uint32_t* flag_of(const PeerMemory& m, int at, int meeting, int from) {
  return m.flags[at] + (meeting * kPeerBlocks + blockIdx.x) * kMaxPeers + from;
}

// Whether the flag came to this epoch; false when told to stop or out of patience. The other rank
// may be one epoch ahead already. (A flag left over from 2^32 launches ago would be taken for a new
// one: a block index that was not used for days of decoding.)
__device__ bool wait_for(const PeerMemory& m, const uint32_t* flag, uint32_t epoch) {
  const uint64_t start = nanoseconds();
  for (uint32_t spins = 1;; ++spins) {
    const uint32_t seen = ld_acquire(flag);
    if (seen == epoch || seen == epoch + 1) return true;
    if (spins % 64 == 0) {  // the host's memory is a slow read away
      if (ld_acquire(m.stop) != 0) return false;
      if (nanoseconds() - start > m.limit_ns) {
        st_release(m.expired, 1);
        return false;
      }
    }
    spin_pause();
  }
}

// What this block has written before is visible to the others' blocks of this index afterwards, and
// the other way round. The whole block calls; false for all of it when a rank did not come.
__device__ bool meet(const PeerMemory& m, int meeting, uint32_t epoch) {
  __syncthreads();
  bool missing = false;
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < m.size && peer != m.rank) {
    st_release(flag_of(m, peer, meeting, m.rank), epoch);
    missing = !wait_for(m, flag_of(m, m.rank, meeting, peer), epoch);
  }
  return __syncthreads_or(missing) == 0;
}

// The number of this launch, the same on all ranks.
__device__ uint32_t begin_launch(const PeerMemory& m) {
  if (m.number != 0 && blockIdx.x == 0 && threadIdx.x == 0) st_relaxed(m.progress, m.number);
  return m.epoch[0] + 1;
}

// The last block of the launch counts it; every block has read the count by then.
__device__ void end_launch(const PeerMemory& m, uint32_t epoch) {
  __syncthreads();
  if (threadIdx.x == 0 && atomicAdd(m.epoch + 1, 1u) == gridDim.x - 1) {
    m.epoch[0] = epoch;
    m.epoch[1] = 0;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) one_shot(PeerMemory m, T* x, int64_t n, bool vectors) {
  const uint32_t epoch = begin_launch(m);
  const int64_t packs = (n + kPack<T> - 1) / kPack<T>;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = first; i < packs; i += step) {
    store_16(pack_of(m, m.rank, epoch, i), load_pack(x, i, n, vectors));
  }
  if (meet(m, 0, epoch)) {
    for (int64_t i = first; i < packs; i += step) {
      float sum[kPack<T>];
      sum_packs<T>(m, epoch, i, sum);
      store_pack(x, i, n, vectors, pack(sum));
    }
  }
  end_launch(m, epoch);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) two_shot(PeerMemory m, T* x, int64_t n, bool vectors) {
  const uint32_t epoch = begin_launch(m);
  const int64_t packs = (n + kPack<T> - 1) / kPack<T>;
  const int64_t slice = (packs + m.size - 1) / m.size;  // packs of a rank's slice
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = first; i < slice; i += step) {
    for (int r = 0; r < m.size; ++r) {
      const int64_t at = r * slice + i;
      if (at < packs) store_16(pack_of(m, m.rank, epoch, at), load_pack(x, at, n, vectors));
    }
  }
  bool all_there = meet(m, 0, epoch);
  if (all_there) {
    for (int64_t i = first; i < slice; i += step) {
      const int64_t at = m.rank * slice + i;
      if (at >= packs) break;
      float sum[kPack<T>];
      sum_packs<T>(m, epoch, at, sum);
      // In its own buffer, where nobody else reads this slice before the next meeting.
      store_16(pack_of(m, m.rank, epoch, at), pack(sum));
    }
    all_there = meet(m, 1, epoch);
  }
  if (all_there) {
    for (int64_t i = first; i < slice; i += step) {
      for (int r = 0; r < m.size; ++r) {
        const int64_t at = r * slice + i;
        if (at < packs) store_pack(x, at, n, vectors, load_16(pack_of(m, r, epoch, at)));
      }
    }
  }
  end_launch(m, epoch);
}

// One block takes whole rows, so that it can normalise them.
template <typename T>
__global__ void __launch_bounds__(kThreads) add_rms_norm(PeerMemory m, PeerNormArguments<T> a) {
  __shared__ float scratch[kWarp];
  const uint32_t epoch = begin_launch(m);
  const int64_t packs = (a.hidden + kPack<T> - 1) / kPack<T>;  // of a row
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
      store_16(pack_of(m, m.rank, epoch, row * packs + i),
               load_pack(a.x + row * a.x_stride, i, a.hidden, a.vectors));
    }
  }
  if (meet(m, 0, epoch)) {
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
      T* residual = a.residual + row * a.residual_stride;
      T* out = a.out + row * a.out_stride;
      float squares = 0;
      for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
        float sum[kPack<T>], before[kPack<T>];
        sum_packs<T>(m, epoch, row * packs + i, sum);
        unpack(load_pack(residual, i, a.hidden, a.vectors), before);
#pragma unroll
        for (int j = 0; j < kPack<T>; ++j) sum[j] += before[j];
        const uint4 stored = pack(sum);
        store_pack(residual, i, a.hidden, a.vectors, stored);
        unpack(stored, sum);  // what is normalised is what is stored; past the row's end it is 0
#pragma unroll
        for (int j = 0; j < kPack<T>; ++j) squares += sum[j] * sum[j];
      }
      squares = block_sum(squares, scratch);
      const float factor = 1.0f / sqrtf(squares / static_cast<float>(a.hidden) + a.eps);
      for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {  // the packs it has just stored
        float values[kPack<T>];
        unpack(load_pack(residual, i, a.hidden, a.vectors), values);
#pragma unroll
        for (int j = 0; j < kPack<T>; ++j) {
          const int64_t at = i * kPack<T> + j;
          if (at < a.hidden) values[j] *= factor * a.weight[at];
        }
        store_pack(out, i, a.hidden, a.vectors, pack(values));
      }
    }
  }
  end_launch(m, epoch);
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// The same on all ranks, as they meet block by block.
template <typename T>
dim3 blocks_for(int64_t elements) {
  const int64_t per_block = int64_t{kThreads} * kPack<T>;
  const int64_t blocks = (elements + per_block - 1) / per_block;
  return dim3(static_cast<unsigned>(blocks < kPeerBlocks ? blocks : kPeerBlocks));
}

}  // namespace

template <typename T>
void launch_one_shot(const PeerMemory& memory, T* x, int64_t elements, cudaStream_t stream) {
  launch(one_shot<T>, blocks_for<T>(elements), dim3(kThreads), 0, stream, memory, x, elements,
         aligned(x));
}

template <typename T>
void launch_two_shot(const PeerMemory& memory, T* x, int64_t elements, cudaStream_t stream) {
  // Blocks for a slice: each handles its part of all slices.
  const int64_t slice = (elements + memory.size - 1) / memory.size;
  launch(two_shot<T>, blocks_for<T>(slice), dim3(kThreads), 0, stream, memory, x, elements,
         aligned(x));
}

template <typename T>
void launch_add_rms_norm(const PeerMemory& memory, const PeerNormArguments<T>& arguments,
                         cudaStream_t stream) {
  const int64_t blocks = arguments.rows < kPeerBlocks ? arguments.rows : kPeerBlocks;
  launch(add_rms_norm<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, memory,
         arguments);
}

template void launch_one_shot(const PeerMemory&, float*, int64_t, cudaStream_t);
template void launch_one_shot(const PeerMemory&, bf16*, int64_t, cudaStream_t);
template void launch_two_shot(const PeerMemory&, float*, int64_t, cudaStream_t);
template void launch_two_shot(const PeerMemory&, bf16*, int64_t, cudaStream_t);
template void launch_add_rms_norm(const PeerMemory&, const PeerNormArguments<float>&, cudaStream_t);
template void launch_add_rms_norm(const PeerMemory&, const PeerNormArguments<bf16>&, cudaStream_t);

}  // namespace shoal
