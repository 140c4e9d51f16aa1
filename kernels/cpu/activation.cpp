// add and silu_mul.
#include "kernels/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation.cpp"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

void add_rows(const Tensor& x, const Tensor& y, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const float* from = x.row<float>(t);
    float* to = y.row<float>(t);
    for_vectors(
        x.dim(1), [&](int64_t i) HWY_ATTR { store(hn::Add(load(to + i), load(from + i)), to + i); },
        [&](int64_t i, int64_t n)
            HWY_ATTR { store_n(hn::Add(load_n(to + i, n), load_n(from + i, n)), to + i, n); });
  }
}

void silu_mul_rows(const Tensor& gate, const Tensor& up, const Tensor& out, int64_t begin,
                   int64_t end) {
  const auto value = [](VF g, VF u) HWY_ATTR { return hn::Mul(hn::Mul(g, sigmoid(g)), u); };
  for (int64_t t = begin; t < end; ++t) {
    const float* g = gate.row<float>(t);
    const float* u = up.row<float>(t);
    float* to = out.row<float>(t);
    for_vectors(
        gate.dim(1), [&](int64_t i) HWY_ATTR { store(value(load(g + i), load(u + i)), to + i); },
        [&](int64_t i, int64_t n)
            HWY_ATTR { store_n(value(load_n(g + i, n), load_n(u + i, n)), to + i, n); });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {

HWY_EXPORT(add_rows);
HWY_EXPORT(silu_mul_rows);

void CpuOps::add(const Tensor& x, const Tensor& y) {
  check_f32(x, 2, "x");
  check_f32(y, 2, "y");
  SHOAL_CHECK(x.dim(0) == y.dim(0) && x.dim(1) == y.dim(1), "x {}, y {}", x.shape_string(),
              y.shape_string());
  for_rows(x.dim(0), x.dim(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(add_rows)(x, y, begin, end);
  });
}

void CpuOps::silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) {
  check_f32(gate, 2, "gate");
  check_f32(up, 2, "up");
  check_f32(out, 2, "out");
  SHOAL_CHECK(gate.dim(0) == up.dim(0) && gate.dim(1) == up.dim(1) && out.dim(0) == up.dim(0) &&
                  out.dim(1) == up.dim(1),
              "gate {}, up {}, out {}", gate.shape_string(), up.shape_string(), out.shape_string());
  // An exp costs about eight plain operations.
  for_rows(gate.dim(0), 8 * gate.dim(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(silu_mul_rows)(gate, up, out, begin, end);
  });
}

}  // namespace shoal
#endif  // HWY_ONCE
