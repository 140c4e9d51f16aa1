// rope, write_cache and gather_cache: one thread per pack (rope: per eight or sixteen elements that
// turn together), accesses of 16 bytes where alignment allows. All bound by memory, in decode by
// latency. The table of angles is read as it is, through L1: the heads of a token share its row.
// Offsets into a cache are 64-bit: num_slots * dim passes 2^31 on every large GPU.
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

void CudaOps::write_cache(const Tensor& x, const Tensor& slots, const Tensor& cache,
                          int64_t first_column) {
  check_activation(x, 2, "x");
  check_activation(cache, 2, "cache");
  check_i32_on_device(slots, x.dim(0), "slots");
  SHOAL_CHECK(first_column >= 0 && first_column + x.dim(1) <= cache.dim(1),
              "x {}, cache {}, first column {}", x.shape_string(), cache.shape_string(),
              first_column);
  const int64_t items = x.dim(0) * packs_of(x.dim(1));
  if (items == 0) return;
  const Tensor columns = cache.slice(1, first_column, first_column + x.dim(1));
  with_activation_types(x, cache, [&](auto from, auto to) {
    using X = decltype(from);
    using Cache = decltype(to);
    launch(write_cache_kernel<X, Cache>, grid_for(items), dim3(kRowThreads), 0, stream(),
           x.as<const X>(), slots.as<const int32_t>(), columns.as<Cache>(), x.dim(0), x.dim(1),
           x.stride[0], columns.stride[0], packs_aligned(x) && packs_aligned(columns));
  });
}

void CudaOps::gather_cache(const Tensor& cache, const Tensor& block_table, int32_t page_size,
                           int64_t begin, int64_t end, const Tensor& out) {
  check_activation(out, 2, "out");
  check_activation(cache, 2, "cache");
  check_i32_on_device(block_table, block_table.num_elements(), "block_table");
  SHOAL_CHECK(cache.dim(1) == out.dim(1) && begin >= 0 && out.dim(0) == end - begin &&
                  page_size > 0 && end <= block_table.num_elements() * page_size,
              "cache {}, positions [{}, {}), out {}", cache.shape_string(), begin, end,
              out.shape_string());
  const int64_t items = out.dim(0) * packs_of(out.dim(1));
  if (items == 0) return;
  with_activation_types(cache, out, [&](auto from, auto to) {
    using Cache = decltype(from);
    using Out = decltype(to);
    launch(gather_cache_kernel<Cache, Out>, grid_for(items), dim3(kRowThreads), 0, stream(),
           cache.as<const Cache>(), block_table.as<const int32_t>(), page_size, begin,
           out.as<Out>(), out.dim(0), out.dim(1), cache.stride[0], out.stride[0],
           packs_aligned(cache) && packs_aligned(out));
  });
}

}  // namespace shoal
