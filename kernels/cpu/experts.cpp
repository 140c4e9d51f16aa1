// sort_by_expert and combine.
#include <algorithm>

#include "kernels/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/experts.cpp"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

void combine_rows(const Tensor& rows, const Tensor& slot, const Tensor& weights, const Tensor& out,
                  int64_t begin, int64_t end) {
  const int64_t dim = out.dim(1), top_k = slot.dim(1);
  for (int64_t t = begin; t < end; ++t) {
    const int32_t* slots = slot.row<int32_t>(t);
    const float* scales = weights.row<float>(t);
    // The choices in order for each element: the sum stays in a register.
    const auto sum = [&](const auto& load_at) HWY_ATTR {
      VF total = hn::Zero(DF());
      for (int64_t j = 0; j < top_k; ++j) {
        if (slots[j] < 0) continue;
        total = hn::MulAdd(hn::Set(DF(), scales[j]), load_at(rows.row<float>(slots[j])), total);
      }
      return total;
    };
    float* to = out.row<float>(t);
    for_vectors(
        dim,
        [&](int64_t i) HWY_ATTR {
          store(sum([&](const float* row) HWY_ATTR { return load(row + i); }), to + i);
        },
        [&](int64_t i, int64_t n) HWY_ATTR {
          store_n(sum([&](const float* row) HWY_ATTR { return load_n(row + i, n); }), to + i, n);
        });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {

HWY_EXPORT(combine_rows);

int64_t CpuOps::sort_by_expert(const Tensor& expert_ids, int32_t first_expert,
                               const Tensor& source_row, const Tensor& slot,
                               const Tensor& offsets) {
  SHOAL_CHECK(expert_ids.rank == 2 && offsets.rank == 1 && offsets.dim(0) >= 1,
              "ids {}, offsets {}", expert_ids.shape_string(), offsets.shape_string());
  const int64_t top_k = expert_ids.dim(1), pairs = expert_ids.num_elements();
  const int64_t experts = offsets.dim(0) - 1;
  check_i32(expert_ids, pairs, "expert_ids");
  check_i32(slot, pairs, "slot");
  check_i32(offsets, experts + 1, "offsets");
  SHOAL_CHECK(source_row.dtype == DType::kI32 && source_row.num_elements() >= pairs,
              "source_row {}", source_row.shape_string());
  const int32_t* ids = expert_ids.as<int32_t>();
  int32_t* starts = offsets.as<int32_t>();
  const auto local = [&](int64_t i) { return int64_t{ids[i]} - first_expert; };
  const auto is_local = [&](int64_t e) { return e >= 0 && e < experts; };

  // A counting sort whose starts become the ends while rows are placed, and are then moved back.
  std::fill(starts, starts + experts + 1, 0);
  for (int64_t i = 0; i < pairs; ++i) {
    if (ids[i] >= 0 && is_local(local(i))) ++starts[local(i) + 1];
  }
  for (int64_t e = 0; e < experts; ++e) starts[e + 1] += starts[e];
  for (int64_t i = 0; i < pairs; ++i) {
    if (ids[i] < 0 || !is_local(local(i))) {
      slot.as<int32_t>()[i] = -1;
      continue;
    }
    const int32_t row = starts[local(i)]++;
    slot.as<int32_t>()[i] = row;
    source_row.as<int32_t>()[row] = static_cast<int32_t>(i / top_k);
  }
  for (int64_t e = experts; e > 0; --e) starts[e] = starts[e - 1];
  starts[0] = 0;
  return starts[experts];
}

void CpuOps::combine(const Tensor& rows, const Tensor& slot, const Tensor& weights,
                     const Tensor& out) {
  check_f32(rows, 2, "rows");
  check_f32(out, 2, "out");
  check_f32(weights, 2, "weights");
  check_i32(slot, weights.num_elements(), "slot");
  SHOAL_CHECK(slot.rank == 2 && slot.dim(0) == out.dim(0) && weights.dim(0) == out.dim(0) &&
                  rows.dim(1) == out.dim(1),
              "rows {}, slot {}, out {}", rows.shape_string(), slot.shape_string(),
              out.shape_string());
  for_rows(out.dim(0), out.dim(1) * slot.dim(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(combine_rows)(rows, slot, weights, out, begin, end);
  });
}

}  // namespace shoal
#endif  // HWY_ONCE
