// Verbs that move rows: embedding, gather_rows, copy.
#include <cstring>

#include "kernels/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/embedding.cpp"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

template <typename T>
void copy_typed(const T* in, int64_t n, float* out) {
  for_vectors(
      n, [&](int64_t i) HWY_ATTR { store(load(in + i), out + i); },
      [&](int64_t i, int64_t left) HWY_ATTR { store_n(load_n(in + i, left), out + i, left); });
}

void embedding_rows(const Tensor& ids, const Tensor& table, int64_t first_row, const Tensor& out,
                    int64_t begin, int64_t end) {
  const int64_t dim = table.dim(1);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = ids.as<int32_t>()[t] - first_row;
    float* to = out.row<float>(t);
    if (row < 0 || row >= table.dim(0)) {
      std::memset(to, 0, static_cast<size_t>(dim) * sizeof(float));
    } else if (table.dtype == DType::kF32) {
      copy_typed(table.row<const float>(row), dim, to);
    } else if (table.dtype == DType::kBF16) {
      copy_typed(table.row<const BF16>(row), dim, to);
    } else {
      copy_typed(table.row<const F16>(row), dim, to);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {

HWY_EXPORT(embedding_rows);

void CpuOps::embedding(const Tensor& ids, const Tensor& table, int64_t first_row,
                       const Tensor& out) {
  check_f32(out, 2, "out");
  check_i32(ids, out.dim(0), "ids");
  SHOAL_CHECK(
      table.rank == 2 && table.dim(1) == out.dim(1) && table.stride[1] == 1 &&
          (table.dtype == DType::kF32 || table.dtype == DType::kF16 || table.dtype == DType::kBF16),
      "table {}, out {}", table.shape_string(), out.shape_string());
  for_rows(out.dim(0), out.dim(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(embedding_rows)(ids, table, first_row, out, begin, end);
  });
}

void CpuOps::gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) {
  check_f32(x, 2, "x");
  check_f32(out, 2, "out");
  check_i32(rows, out.dim(0), "rows");
  SHOAL_CHECK(x.dim(1) == out.dim(1), "x {}, out {}", x.shape_string(), out.shape_string());
  const size_t bytes = static_cast<size_t>(x.dim(1)) * sizeof(float);
  for_rows(out.dim(0), out.dim(1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(out.row<float>(i), x.row<float>(rows.as<int32_t>()[i]), bytes);
    }
  });
}

void CpuOps::copy(const Tensor& x, const Tensor& out) {
  SHOAL_CHECK(x.rank >= 1 && x.rank <= 3 && x.rank == out.rank && x.shape == out.shape,
              "x {}, out {}", x.shape_string(), out.shape_string());
  check_f32(x, x.rank, "x");
  check_f32(out, out.rank, "out");
  // Seen as [a, b, c] with leading ones.
  const int lead = 3 - x.rank;
  const int64_t a = lead > 0 ? 1 : x.dim(0), b = lead > 1 ? 1 : x.dim(1 - lead);
  const auto outer = [&](const Tensor& t) { return lead > 0 ? 0 : t.stride[0]; };
  const auto inner = [&](const Tensor& t) { return lead > 1 ? 0 : t.stride[1 - lead]; };
  const size_t bytes = static_cast<size_t>(x.dim(x.rank - 1)) * sizeof(float);
  for_rows(a * b, x.dim(x.rank - 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(out.as<float>() + i / b * outer(out) + i % b * inner(out),
                  x.as<float>() + i / b * outer(x) + i % b * inner(x), bytes);
    }
  });
}

}  // namespace shoal
#endif  // HWY_ONCE
