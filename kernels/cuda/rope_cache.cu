// rope, write_cache and gather_cache: one thread per pack (rope: per eight or sixteen elements that
// turn together), accesses of 16 bytes where alignment allows. All bound by memory, in decode by
// latency. The table of angles is read as it is, through L1: the heads of a token share its row.
// write_cache to codes: a warp per token and group (and one for the rotary part), which reads its
// values twice, the second time from L1: first for the scale, then for the codes.
// Offsets into a cache are 64-bit: num_slots * dim passes 2^31 on every large GPU.
#include <cmath>
#include <limits>

#include "kernels/cuda/cache_codes.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/rows.cuh"

namespace shoal {
namespace {

using namespace gpu;

// The pair (a, b) becomes (a cos - b sin, b cos + a sin).
__device__ __forceinline__ void rotate(float& a, float& b, float cosine, float sine) {
  const float first = a * cosine - b * sine;
  b = b * cosine + a * sine;
  a = first;
}

struct RopeShape {
  int64_t tokens, heads, half;
  int64_t token_stride, head_stride, table_stride;
};

// Interleaved pairs: a thread has one pack, four pairs. Halves: a pack of each half, eight pairs.
template <typename T, bool interleaved>
__global__ void rope_kernel(T* x, const int32_t* __restrict__ positions,
                            const float* __restrict__ table, RopeShape shape, bool aligned) {
  const int64_t packs = (shape.half * (interleaved ? 2 : 1) + kPack - 1) / kPack;
  const int64_t item = flat_thread();
  if (item >= shape.tokens * shape.heads * packs) return;
  const auto [row, pack] = divide(item, packs);
  const auto [t, h] = divide(row, shape.heads);
  T* head = x + t * shape.token_stride + h * shape.head_stride;
  const float* cosines = table + positions[t] * shape.table_stride;
  const float* sines = cosines + shape.half;
  if constexpr (interleaved) {
    const int64_t column = pack * kPack, left = 2 * shape.half - column;
    float v[kPack];
    load_pack(head + column, left, aligned, v);
#pragma unroll
    for (int i = 0; i < kPack / 2; ++i) {
      const int64_t pair = column / 2 + i;
      if (pair < shape.half) rotate(v[2 * i], v[2 * i + 1], cosines[pair], sines[pair]);
    }
    store_pack(head + column, left, aligned, v);
  } else {
    const int64_t column = pack * kPack, left = shape.half - column;
    float a[kPack], b[kPack];
    load_pack(head + column, left, aligned, a);
    load_pack(head + shape.half + column, left, aligned, b);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (i < left) rotate(a[i], b[i], cosines[column + i], sines[column + i]);
    }
    store_pack(head + column, left, aligned, a);
    store_pack(head + shape.half + column, left, aligned, b);
  }
}

template <typename X, typename Cache>
__global__ void write_cache_kernel(const X* __restrict__ x, const int32_t* __restrict__ slots,
                                   Cache* __restrict__ cache, int64_t rows, int64_t dim,
                                   int64_t x_stride, int64_t cache_stride, bool aligned) {
  const int64_t packs = (dim + kPack - 1) / kPack;
  const int64_t item = flat_thread();
  if (item >= rows * packs) return;
  const auto [t, pack] = divide(item, packs);
  const int64_t column = pack * kPack, left = dim - column;
  float v[kPack];
  load_pack(x + t * x_stride + column, left, aligned, v);
  store_pack(cache + slots[t] * cache_stride + column, left, aligned, v);
}

// A paged cache of codes as the kernels see it. Strides are in elements.
struct CodesCall {
  void* codes;   // [num_slots, groups * group]
  float* scale;  // [num_slots, groups]
  bf16* rope;    // [num_slots, rope_dim]
  int64_t code_slot, scale_slot, rope_slot;
  int64_t groups, group, rope_dim;
};

// The code of |x| <= limit and a rounding more, to the nearest, ties to even.
template <typename Code>
__device__ __forceinline__ uint8_t code_of(float x) {
  if constexpr (std::is_same_v<Code, int8_t>) {
    return static_cast<uint8_t>(static_cast<int8_t>(__float2int_rn(x)));
  } else {
    const e4m3 code = from_f32<e4m3>(x);
    uint8_t bits;
    memcpy(&bits, &code, 1);
    return bits;
  }
}

// See kCacheMinMax for the rule. Grid: warps of (token, group), the group past the last being the
// rotary part. Lanes take packs of four in turn.
template <typename X, typename Code>
__global__ void write_codes_kernel(const X* __restrict__ x, const int32_t* __restrict__ slots,
                                   CodesCall call, int64_t tokens, int64_t x_stride, float limit,
                                   bool aligned) {
  const int lane = threadIdx.x % kWarp;
  const int64_t pieces = call.groups + (call.rope_dim > 0 ? 1 : 0);
  const auto [t, g] = divide(flat_thread() / kWarp, pieces);
  if (t >= tokens) return;  // a whole warp
  const X* from = x + t * x_stride + g * call.group;
  const int64_t slot = slots[t];
  if (g == call.groups) {
    bf16* to = call.rope + slot * call.rope_slot;
    for (int64_t i = lane; i < call.rope_dim; i += kWarp) to[i] = from_f32<bf16>(to_f32(from[i]));
    return;
  }
  // Without their sign bits floats are in the order of their bits, and a NaN is above them all.
  uint32_t most = 0;
  for (int64_t i = lane; i < call.group; i += kWarp) {
    const uint32_t bits = __float_as_uint(to_f32(from[i])) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  const float largest = bits_to_float(warp_max(most));
  const bool finite = largest <= std::numeric_limits<float>::max();
  const bool zeros = largest < kCacheMinMax;
  const float factor = zeros || !finite ? 0.0f : limit / largest;
  if (lane == 0) {
    call.scale[slot * call.scale_slot + g] =
        zeros ? 0.0f : (finite ? largest / limit : std::numeric_limits<float>::quiet_NaN());
  }
  auto* to = static_cast<uint8_t*>(call.codes) + slot * call.code_slot + g * call.group;
  if (aligned) {  // rows and groups of codes in words
    for (int64_t i = 4 * lane; i < call.group; i += 4 * kWarp) {
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        word |= uint32_t{code_of<Code>(to_f32(from[i + j]) * factor)} << (8 * j);
      }
      *reinterpret_cast<uint32_t*>(to + i) = word;
    }
  } else {
    for (int64_t i = lane; i < call.group; i += kWarp) {
      to[i] = code_of<Code>(to_f32(from[i]) * factor);
    }
  }
}

template <typename Cache, typename Out>
__global__ void gather_cache_kernel(const Cache* __restrict__ cache,
                                    const int32_t* __restrict__ block_table, int32_t page_size,
                                    int64_t begin, Out* __restrict__ out, int64_t rows, int64_t dim,
                                    int64_t cache_stride, int64_t out_stride, bool aligned) {
  const int64_t packs = (dim + kPack - 1) / kPack;
  const int64_t item = flat_thread();
  if (item >= rows * packs) return;
  const auto [row, pack] = divide(item, packs);
  const auto [page, offset] = divide(begin + row, page_size);
  const int64_t slot = int64_t{block_table[page]} * page_size + offset;
  const int64_t column = pack * kPack, left = dim - column;
  float v[kPack];
  load_pack(cache + slot * cache_stride + column, left, aligned, v);
  store_pack(out + row * out_stride + column, left, aligned, v);
}

// A thread per pack of codes, then per pack of the rotary part.
template <typename Code, typename Out>
__global__ void gather_codes_kernel(CodesCall call, const int32_t* __restrict__ block_table,
                                    int32_t page_size, int64_t begin, Out* __restrict__ out,
                                    int64_t rows, int64_t out_stride, bool aligned) {
  const int64_t dim = call.groups * call.group;
  const int64_t code_packs = (dim + kPack - 1) / kPack;
  const int64_t packs = code_packs + (call.rope_dim + kPack - 1) / kPack;
  const int64_t item = flat_thread();
  if (item >= rows * packs) return;
  const auto [row, pack] = divide(item, packs);
  const auto [page, offset] = divide(begin + row, page_size);
  const int64_t slot = int64_t{block_table[page]} * page_size + offset;
  float v[kPack];
  if (pack < code_packs) {
    const int64_t column = pack * kPack, left = dim - column;
    const Code* codes = static_cast<const Code*>(call.codes) + slot * call.code_slot + column;
    const float* scales = call.scale + slot * call.scale_slot;
    if (aligned) {  // the pack is whole and of one group
      const uint2 raw = *reinterpret_cast<const uint2*>(codes);
      decode8<Code>({raw.x, raw.y}, v);
      const float scale = scales[divide(column, call.group).quotient];
#pragma unroll
      for (int i = 0; i < kPack; ++i) v[i] *= scale;
    } else {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const int64_t c = i < left ? i : 0;
        v[i] = stored_number(codes[c]) * scales[divide(column + c, call.group).quotient];
      }
    }
    store_pack(out + row * out_stride + column, left, aligned, v);
  } else {
    const int64_t column = (pack - code_packs) * kPack, left = call.rope_dim - column;
    load_pack(call.rope + slot * call.rope_slot + column, left, aligned, v);
    store_pack(out + row * out_stride + dim + column, left, aligned, v);
  }
}

CodesCall codes_call(const CacheTensor& cache) {
  return {.codes = cache.data.data,
          .scale = cache.scale.as<float>(),
          .rope = cache.rope.as<bf16>(),
          .code_slot = cache.data.stride[0],
          .scale_slot = cache.scale.stride[0],
          .rope_slot = cache.rope.stride[0],
          .groups = cache.groups(),
          .group = cache.data.dim(1) / cache.groups(),
          .rope_dim = cache.rope.defined() ? cache.rope.dim(1) : 0};
}

// body(a code of the cache's type, an element of the activation's)
template <typename Body>
void with_code_types(const CacheTensor& cache, const Tensor& activation, const Body& body) {
  with_activation_type(activation, [&](auto element) {
    if (cache.data.dtype == DType::kI8) {
      body(int8_t{}, element);
    } else {
      body(e4m3{}, element);
    }
  });
}

}  // namespace

void CudaOps::rope(const Tensor& x, const Tensor& positions, const Tensor& table,
                   bool interleaved) {
  check_activation(x, 3, "x");
  check_i32_on_device(positions, x.dim(0), "positions");
  SHOAL_CHECK(table.dtype == DType::kF32 && table.rank == 2 && table.stride[1] == 1 &&
                  x.dim(2) % 2 == 0 && table.dim(1) == x.dim(2),
              "x {}, table {}", x.shape_string(), table.shape_string());
  const int64_t half = x.dim(2) / 2;
  const int64_t items = x.dim(0) * x.dim(1) * packs_of(interleaved ? 2 * half : half);
  if (items == 0) return;
  // The second half begins at `half`: it must be on a boundary, too.
  const bool aligned = packs_aligned(x) && (interleaved || half * dtype_size(x.dtype) % 16 == 0);
  const RopeShape shape{x.dim(0), x.dim(1), half, x.stride[0], x.stride[1], table.stride[0]};
  with_activation_type(x, [&](auto element) {
    using T = decltype(element);
    launch(interleaved ? rope_kernel<T, true> : rope_kernel<T, false>, grid_for(items),
           dim3(kRowThreads), 0, stream(), x.as<T>(), positions.as<const int32_t>(),
           table.as<const float>(), shape, aligned);
  });
}

void CudaOps::write_cache(const Tensor& x, const Tensor& slots, const CacheTensor& cache) {
  check_activation(x, 2, "x");
  check_cache(cache, "cache");
  check_i32_on_device(slots, x.dim(0), "slots");
  SHOAL_CHECK(x.dim(1) == cache.dim(), "x {}, cache {}", x.shape_string(), cache.shape_string());
  if (x.num_elements() == 0) return;
  if (cache.quantised()) {
    const CodesCall call = codes_call(cache);
    const int64_t warps = x.dim(0) * (call.groups + (call.rope_dim > 0 ? 1 : 0));
    const bool aligned = reinterpret_cast<uintptr_t>(call.codes) % 4 == 0 &&
                         call.code_slot % 4 == 0 && call.group % 4 == 0;
    with_code_types(cache, x, [&](auto code, auto from) {
      using X = decltype(from);
      launch(write_codes_kernel<X, decltype(code)>, grid_for(warps * kWarp), dim3(kRowThreads), 0,
             stream(), x.as<const X>(), slots.as<const int32_t>(), call, x.dim(0), x.stride[0],
             cache_limit(cache.data.dtype), aligned);
    });
    return;
  }
  const Tensor& data = cache.data;
  with_activation_types(x, data, [&](auto from, auto to) {
    using X = decltype(from);
    using Cache = decltype(to);
    launch(write_cache_kernel<X, Cache>, grid_for(x.dim(0) * packs_of(x.dim(1))), dim3(kRowThreads),
           0, stream(), x.as<const X>(), slots.as<const int32_t>(), data.as<Cache>(), x.dim(0),
           x.dim(1), x.stride[0], data.stride[0], packs_aligned(x) && packs_aligned(data));
  });
}

void CudaOps::gather_cache(const CacheTensor& cache, const Tensor& block_table, int32_t page_size,
                           int64_t begin, int64_t end, const Tensor& out) {
  check_activation(out, 2, "out");
  check_cache(cache, "cache");
  check_i32_on_device(block_table, block_table.num_elements(), "block_table");
  SHOAL_CHECK(cache.dim() == out.dim(1) && begin >= 0 && out.dim(0) == end - begin &&
                  page_size > 0 && end <= block_table.num_elements() * page_size,
              "cache {}, positions [{}, {}), out {}", cache.shape_string(), begin, end,
              out.shape_string());
  if (out.num_elements() == 0) return;
  if (cache.quantised()) {
    const CodesCall call = codes_call(cache);
    const int64_t packs = packs_of(cache.data.dim(1)) + packs_of(call.rope_dim);
    const bool aligned = reinterpret_cast<uintptr_t>(call.codes) % kPack == 0 &&
                         call.code_slot % kPack == 0 && call.group % kPack == 0 &&
                         packs_aligned(out) &&
                         (call.rope_dim == 0 || packs_aligned(cache.rope));
    with_code_types(cache, out, [&](auto code, auto to) {
      using Out = decltype(to);
      launch(gather_codes_kernel<decltype(code), Out>, grid_for(out.dim(0) * packs),
             dim3(kRowThreads), 0, stream(), call, block_table.as<const int32_t>(), page_size, begin,
             out.as<Out>(), out.dim(0), out.stride[0], aligned);
    });
    return;
  }
  const Tensor& data = cache.data;
  with_activation_types(data, out, [&](auto from, auto to) {
    using Cache = decltype(from);
    using Out = decltype(to);
    launch(gather_cache_kernel<Cache, Out>, grid_for(out.dim(0) * packs_of(out.dim(1))),
           dim3(kRowThreads), 0, stream(), data.as<const Cache>(), block_table.as<const int32_t>(),
           page_size, begin, out.as<Out>(), out.dim(0), out.dim(1), data.stride[0], out.stride[0],
           packs_aligned(data) && packs_aligned(out));
  });
}

}  // namespace shoal
