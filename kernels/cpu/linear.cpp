// Verbs on matrix products: linear, head_linear, grouped_linear, dequantize.
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/matmul.h"

namespace shoal {

void CpuOps::linear(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out) {
  check_f32(x, 2, "x");
  check_f32(out, 2, "out");
  check_weight(w);
  SHOAL_CHECK(x.dim(1) == w.k() && out.dim(1) == w.n() && out.dim(0) == x.dim(0),
              "x {}, w {}, out {}", x.shape_string(), w.data.shape_string(), out.shape_string());
  if (bias.defined()) {
    check_f32(bias, 1, "bias");
    SHOAL_CHECK(bias.dim(0) == w.n(), "bias {}", bias.shape_string());
  }
  const MatMul product{.x = x.as<float>(),
                       .x_stride = x.stride[0],
                       .w = w,
                       .bias = bias.defined() ? bias.as<float>() : nullptr,
                       .out = out.as<float>(),
                       .out_stride = out.stride[0],
                       .m = x.dim(0)};
  float* base = scratch(matmul_scratch_floats());
  run_matmuls({&product, 1}, pool_, {base, scratch_stride_});
}

void CpuOps::head_linear(const Tensor& x, const Tensor& w, const Tensor& out) {
  check_f32(x, 3, "x");
  check_f32(out, 3, "out");
  SHOAL_CHECK(w.rank == 3 && w.dim(0) == x.dim(1) && w.dim(2) == x.dim(2) &&
                  out.dim(0) == x.dim(0) && out.dim(1) == x.dim(1) && out.dim(2) == w.dim(1),
              "x {}, w {}, out {}", x.shape_string(), w.shape_string(), out.shape_string());
  std::vector<MatMul> products;
  products.reserve(x.dim(1));
  for (int64_t h = 0; h < x.dim(1); ++h) {
    Weight head;
    head.data = Tensor(static_cast<std::byte*>(w.data) + h * w.stride[0] * dtype_size(w.dtype),
                       w.dtype, {w.dim(1), w.dim(2)});
    head.data.stride = {w.stride[1], w.stride[2]};
    check_weight(head);
    products.push_back({.x = x.as<float>() + h * x.stride[1],
                        .x_stride = x.stride[0],
                        .w = head,
                        .out = out.as<float>() + h * out.stride[1],
                        .out_stride = out.stride[0],
                        .m = x.dim(0)});
  }
  float* base = scratch(matmul_scratch_floats());
  run_matmuls(products, pool_, {base, scratch_stride_});
}

void CpuOps::grouped_linear(const Tensor& x, std::span<const Weight> experts, const Tensor& offsets,
                            const Tensor& out) {
  check_f32(x, 2, "x");
  check_f32(out, 2, "out");
  check_i32(offsets, static_cast<int64_t>(experts.size()) + 1, "offsets");
  std::vector<MatMul> products;
  for (size_t e = 0; e < experts.size(); ++e) {
    const int64_t begin = offsets.as<int32_t>()[e], end = offsets.as<int32_t>()[e + 1];
    SHOAL_CHECK(0 <= begin && begin <= end && end <= x.dim(0) && end <= out.dim(0),
                "rows [{}, {}) of expert {}, x {}, out {}", begin, end, e, x.shape_string(),
                out.shape_string());
    if (begin == end) continue;
    const Weight& w = experts[e];
    check_weight(w);
    SHOAL_CHECK(x.dim(1) == w.k() && out.dim(1) == w.n(), "x {}, expert {}, out {}",
                x.shape_string(), w.data.shape_string(), out.shape_string());
    products.push_back({.x = x.row<float>(begin),
                        .x_stride = x.stride[0],
                        .w = w,
                        .out = out.row<float>(begin),
                        .out_stride = out.stride[0],
                        .m = end - begin});
  }
  float* base = scratch(matmul_scratch_floats());
  run_matmuls(products, pool_, {base, scratch_stride_});
}

void CpuOps::dequantize(const Weight& w, const Tensor& out) {
  check_weight(w);
  SHOAL_CHECK(out.rank == 2 && (out.dtype == DType::kF32 || out.dtype == DType::kBF16) &&
                  out.dim(0) == w.n() && out.dim(1) == w.k(),
              "w {}, out {}", w.data.shape_string(), out.shape_string());
  for_rows(w.n(), w.k(), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (out.dtype == DType::kF32) {
        decode_weight_row(w, row, out.row<float>(row));
      } else {
        decode_weight_row(w, row, out.row<BF16>(row));
      }
    }
  });
}

}  // namespace shoal
