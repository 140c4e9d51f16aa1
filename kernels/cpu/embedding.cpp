// Verbs that move rows: embedding, gather_rows, copy.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/matmul.h"

namespace shoal {

void CpuOps::embedding(const Tensor& ids, const Weight& table, int64_t first_row,
                       const Tensor& out) {
  check_f32(out, 2, "out");
  check_i32(ids, out.dim(0), "ids");
  check_weight(table);
  SHOAL_CHECK(table.k() == out.dim(1), "table {}, out {}", table.data.shape_string(),
              out.shape_string());
  for_rows(out.dim(0), out.dim(1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = ids.as<int32_t>()[t] - first_row;
      if (row >= 0 && row < table.n()) {
        decode_weight_row(table, row, out.row<float>(t));
      } else {
        std::fill_n(out.row<float>(t), out.dim(1), 0.0f);
      }
    }
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
