// embedding, gather_rows, copy and add: one thread per pack of eight elements, accesses of 16 bytes
// where the tensors allow them. All bound by memory: each element is read once and written once
// (add: read twice). Types are independent of each other and converted on the way, rounding to
// nearest even.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/matmul_tiles.cuh"
#include "kernels/cuda/rows.cuh"

namespace shoal {
namespace {

using namespace gpu;

// out[t] = table[ids[t] - first_row], zeros where the table has no such row. gather_rows is the
// case of first_row 0 and ids that all exist.
template <typename Table, typename Out>
__global__ void embedding_kernel(const int32_t* __restrict__ ids, const Table* __restrict__ table,
                                 int64_t first_row, int64_t table_rows, Out* __restrict__ out,
                                 int64_t rows, int64_t dim, int64_t table_stride,
                                 int64_t out_stride, bool aligned) {
  const int64_t packs = (dim + kPack - 1) / kPack;
  const int64_t item = flat_thread();
  if (item >= rows * packs) return;
  const auto [t, pack] = divide(item, packs);
  const int64_t column = pack * kPack, left = dim - column;
  const int64_t row = ids[t] - first_row;
  float v[kPack] = {};
  if (row >= 0 && row < table_rows) {
    load_pack(table + row * table_stride + column, left, aligned, v);
  }
  store_pack(out + t * out_stride + column, left, aligned, v);
}

// The same from a table with scales, decoded element by element: a step reads as many rows as it
// has tokens, nothing beside the products.
template <typename W, typename Out>
__global__ void quantized_embedding_kernel(const int32_t* __restrict__ ids, WeightView table,
                                           int64_t first_row, int64_t table_rows,
                                           Out* __restrict__ out, int64_t rows, int64_t dim,
                                           int64_t out_stride, bool aligned) {
  const int64_t packs = (dim + kPack - 1) / kPack;
  const int64_t item = flat_thread();
  if (item >= rows * packs) return;
  const auto [t, pack] = divide(item, packs);
  const int64_t column = pack * kPack, left = dim - column;
  const int64_t row = ids[t] - first_row;
  float v[kPack] = {};
  if (row >= 0 && row < table_rows) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (i < left) v[i] = value_at<W>(table, row, column + i);
    }
  }
  store_pack(out + t * out_stride + column, left, aligned, v);
}

struct Strides {
  int64_t outer, inner;
};

template <typename X, typename Out>
__global__ void copy_kernel(const X* __restrict__ x, Out* __restrict__ out, int64_t a, int64_t b,
                            int64_t c, Strides x_stride, Strides out_stride, bool aligned) {
  const int64_t packs = (c + kPack - 1) / kPack;
  const int64_t item = flat_thread();
  if (item >= a * b * packs) return;
  const auto [row, pack] = divide(item, packs);
  const auto [outer, inner] = divide(row, b);
  const int64_t column = pack * kPack, left = c - column;
  float v[kPack];
  load_pack(x + outer * x_stride.outer + inner * x_stride.inner + column, left, aligned, v);
  store_pack(out + outer * out_stride.outer + inner * out_stride.inner + column, left, aligned, v);
}

template <typename X, typename Y>
__global__ void add_kernel(const X* __restrict__ x, Y* __restrict__ y, int64_t rows, int64_t dim,
                           int64_t x_stride, int64_t y_stride, bool aligned) {
  const int64_t packs = (dim + kPack - 1) / kPack;
  const int64_t item = flat_thread();
  if (item >= rows * packs) return;
  const auto [row, pack] = divide(item, packs);
  const int64_t column = pack * kPack, left = dim - column;
  float v[kPack], sum[kPack];
  load_pack(x + row * x_stride + column, left, aligned, v);
  load_pack(y + row * y_stride + column, left, aligned, sum);
#pragma unroll
  for (int i = 0; i < kPack; ++i) sum[i] += v[i];
  store_pack(y + row * y_stride + column, left, aligned, sum);
}

template <typename Table, typename Out>
void launch_rows(const Tensor& ids, const Tensor& table, int64_t first_row, const Tensor& out,
                 cudaStream_t stream) {
  const int64_t items = out.dim(0) * packs_of(out.dim(1));
  if (items == 0) return;
  launch(embedding_kernel<Table, Out>, grid_for(items), dim3(kRowThreads), 0, stream,
         ids.as<const int32_t>(), table.as<const Table>(), first_row, table.dim(0), out.as<Out>(),
         out.dim(0), out.dim(1), table.stride[0], out.stride[0],
         packs_aligned(table) && packs_aligned(out));
}

template <typename W, typename Out>
void launch_quantized(const Tensor& ids, const Weight& table, int64_t first_row, const Tensor& out,
                      cudaStream_t stream) {
  const int64_t items = out.dim(0) * packs_of(out.dim(1));
  if (items == 0) return;
  launch(quantized_embedding_kernel<W, Out>, grid_for(items), dim3(kRowThreads), 0, stream,
         ids.as<const int32_t>(), weight_view(table), first_row, table.n(), out.as<Out>(),
         out.dim(0), out.dim(1), out.stride[0], packs_aligned(out));
}

}  // namespace

void CudaOps::embedding(const Tensor& ids, const Weight& table, int64_t first_row,
                        const Tensor& out) {
  check_activation(out, 2, "out");
  check_i32_on_device(ids, out.dim(0), "ids");
  check_weight(table);
  SHOAL_CHECK(table.k() == out.dim(1), "table {}, out {}", table.data.shape_string(),
              out.shape_string());
  with_activation_type(out, [&](auto to) {
    using Out = decltype(to);
    with_weight_type(table.data.dtype, table.min.defined(), [&](auto from) {
      using W = decltype(from);
      if constexpr (WeightType<W>::kScaled) {
        launch_quantized<W, Out>(ids, table, first_row, out, stream());
      } else {
        launch_rows<W, Out>(ids, table.data, first_row, out, stream());
      }
    });
  });
}

void CudaOps::gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) {
  check_activation(x, 2, "x");
  check_activation(out, 2, "out");
  check_i32_on_device(rows, out.dim(0), "rows");
  SHOAL_CHECK(x.dim(1) == out.dim(1), "x {}, out {}", x.shape_string(), out.shape_string());
  with_activation_types(x, out, [&](auto from, auto to) {
    launch_rows<decltype(from), decltype(to)>(rows, x, 0, out, stream());
  });
}

void CudaOps::copy(const Tensor& x, const Tensor& out) {
  SHOAL_CHECK(x.rank >= 1 && x.rank <= 3 && x.rank == out.rank && x.shape == out.shape,
              "x {}, out {}", x.shape_string(), out.shape_string());
  check_activation(x, x.rank, "x");
  check_activation(out, out.rank, "out");
  // Seen as [a, b, c] with leading ones.
  const int lead = 3 - x.rank;
  const int64_t a = lead > 0 ? 1 : x.dim(0), b = lead > 1 ? 1 : x.dim(1 - lead);
  const int64_t c = x.dim(x.rank - 1);
  const auto strides = [lead](const Tensor& t) {
    return Strides{lead > 0 ? 0 : t.stride[0], lead > 1 ? 0 : t.stride[1 - lead]};
  };
  const int64_t items = a * b * packs_of(c);
  if (items == 0) return;
  with_activation_types(x, out, [&](auto from, auto to) {
    using X = decltype(from);
    using Out = decltype(to);
    launch(copy_kernel<X, Out>, grid_for(items), dim3(kRowThreads), 0, stream(), x.as<const X>(),
           out.as<Out>(), a, b, c, strides(x), strides(out),
           packs_aligned(x) && packs_aligned(out));
  });
}

void CudaOps::add(const Tensor& x, const Tensor& y) {
  check_activation(x, 2, "x");
  check_activation(y, 2, "y");
  SHOAL_CHECK(x.dim(0) == y.dim(0) && x.dim(1) == y.dim(1), "x {}, y {}", x.shape_string(),
              y.shape_string());
  const int64_t items = x.dim(0) * packs_of(x.dim(1));
  if (items == 0) return;
  with_activation_types(x, y, [&](auto from, auto to) {
    using X = decltype(from);
    using Y = decltype(to);
    launch(add_kernel<X, Y>, grid_for(items), dim3(kRowThreads), 0, stream(), x.as<const X>(),
           y.as<Y>(), x.dim(0), x.dim(1), x.stride[0], y.stride[0],
           packs_aligned(x) && packs_aligned(y));
  });
}

}  // namespace shoal
