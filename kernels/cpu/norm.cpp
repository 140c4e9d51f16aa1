// rms_norm and add_rms_norm.
#include <cmath>

#include "kernels/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cpp"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

HWY_INLINE void scale_row(const float* x, const float* weight, VF sum_squares, float eps,
                          int64_t dim, float* out) {
  const float mean = sum_lanes(sum_squares) / static_cast<float>(dim);
  const VF factor = hn::Set(DF(), 1.0f / std::sqrt(mean + eps));
  for_vectors(
      dim,
      [&](int64_t i)
          HWY_ATTR { store(hn::Mul(hn::Mul(load(x + i), factor), load(weight + i)), out + i); },
      [&](int64_t i, int64_t n) HWY_ATTR {
        store_n(hn::Mul(hn::Mul(load_n(x + i, n), factor), load_n(weight + i, n)), out + i, n);
      });
}

void rms_norm_rows(const Tensor& x, const Tensor& weight, float eps, const Tensor& out,
                   int64_t begin, int64_t end) {
  const int64_t dim = x.dim(1);
  for (int64_t t = begin; t < end; ++t) {
    const float* row = x.row<float>(t);
    VF sum = hn::Zero(DF());
    for_vectors(
        dim,
        [&](int64_t i) HWY_ATTR {
          const VF v = load(row + i);
          sum = hn::MulAdd(v, v, sum);
        },
        [&](int64_t i, int64_t n) HWY_ATTR {
          const VF v = load_n(row + i, n);
          sum = hn::MulAdd(v, v, sum);
        });
    scale_row(row, weight.as<float>(), sum, eps, dim, out.row<float>(t));
  }
}

void add_rms_norm_rows(const Tensor& x, const Tensor& residual, const Tensor& weight, float eps,
                       const Tensor& out, int64_t begin, int64_t end) {
  const int64_t dim = x.dim(1);
  for (int64_t t = begin; t < end; ++t) {
    const float* row = x.row<float>(t);
    float* sum_row = residual.row<float>(t);
    VF sum = hn::Zero(DF());
    for_vectors(
        dim,
        [&](int64_t i) HWY_ATTR {
          const VF v = hn::Add(load(sum_row + i), load(row + i));
          store(v, sum_row + i);
          sum = hn::MulAdd(v, v, sum);
        },
        [&](int64_t i, int64_t n) HWY_ATTR {
          const VF v = hn::Add(load_n(sum_row + i, n), load_n(row + i, n));
          store_n(v, sum_row + i, n);
          sum = hn::MulAdd(v, v, sum);
        });
    scale_row(sum_row, weight.as<float>(), sum, eps, dim, out.row<float>(t));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {

HWY_EXPORT(rms_norm_rows);
HWY_EXPORT(add_rms_norm_rows);

namespace {

void check_norm(const Tensor& x, const Tensor& weight, const Tensor& out) {
  check_f32(x, 2, "x");
  check_f32(out, 2, "out");
  check_f32(weight, 1, "weight");
  SHOAL_CHECK(x.dim(0) == out.dim(0) && x.dim(1) == out.dim(1) && weight.dim(0) == x.dim(1),
              "x {}, weight {}, out {}", x.shape_string(), weight.shape_string(),
              out.shape_string());
}

}  // namespace

void CpuOps::rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) {
  check_norm(x, weight, out);
  for_rows(x.dim(0), x.dim(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rms_norm_rows)(x, weight, eps, out, begin, end);
  });
}

void CpuOps::add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float eps,
                          const Tensor& out) {
  check_norm(x, weight, out);
  check_f32(residual, 2, "residual");
  SHOAL_CHECK(residual.dim(0) == x.dim(0) && residual.dim(1) == x.dim(1), "x {}, residual {}",
              x.shape_string(), residual.shape_string());
  for_rows(x.dim(0), x.dim(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(add_rms_norm_rows)(x, residual, weight, eps, out, begin, end);
  });
}

}  // namespace shoal
#endif  // HWY_ONCE
