// route: from the logits of a token to its experts and their weights.
#include <algorithm>
#include <limits>

#include "kernels/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/router.cpp"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

void sigmoid_row(const float* logits, int64_t n, float* scores) {
  for_vectors(
      n, [&](int64_t i) HWY_ATTR { store(sigmoid(load(logits + i)), scores + i); },
      [&](int64_t i, int64_t left)
          HWY_ATTR { store_n(sigmoid(load_n(logits + i, left)), scores + i, left); });
}

void softmax_row(const float* logits, int64_t n, float* scores) {
  float largest = logits[0];
  for (int64_t i = 1; i < n; ++i) largest = logits[i] > largest ? logits[i] : largest;
  const VF shift = hn::Set(DF(), largest);
  for_vectors(
      n, [&](int64_t i) HWY_ATTR { store(exp_f32(hn::Sub(load(logits + i), shift)), scores + i); },
      [&](int64_t i, int64_t left) HWY_ATTR {
        store_n(exp_f32(hn::Sub(load_n(logits + i, left), shift)), scores + i, left);
      });
  VF sum = hn::Zero(DF());
  for_vectors(
      n, [&](int64_t i) HWY_ATTR { sum = hn::Add(sum, load(scores + i)); },
      [&](int64_t i, int64_t left) HWY_ATTR { sum = hn::Add(sum, load_n(scores + i, left)); });
  const float total = sum_lanes(sum);
  for (int64_t i = 0; i < n; ++i) scores[i] /= total;
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {

HWY_EXPORT(sigmoid_row);
HWY_EXPORT(softmax_row);

namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// Index of the largest value not yet taken; the lower index wins ties. -inf can be chosen, too,
// when nothing else is left, so that top_k distinct experts always come out.
int32_t take_largest(const float* values, int64_t n, std::vector<uint8_t>& taken) {
  int32_t best = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (!taken[i] && (best < 0 || values[i] > values[best])) best = static_cast<int32_t>(i);
  }
  taken[best] = 1;
  return best;
}

float sum_of_two_largest(const float* values, int64_t n) {
  float first = kMasked, second = kMasked;
  for (int64_t i = 0; i < n; ++i) {
    if (values[i] > first) {
      second = first;
      first = values[i];
    } else if (values[i] > second) {
      second = values[i];
    }
  }
  return n > 1 ? first + second : first;
}

// Sets the members of all but the topk_group best groups to -inf.
void mask_groups(const RouterSpec& spec, int64_t group_size, std::vector<float>& choice,
                 std::vector<float>& group_score, std::vector<uint8_t>& taken) {
  for (int32_t g = 0; g < spec.n_group; ++g) {
    const float* members = choice.data() + g * group_size;
    group_score[g] = spec.kind == RouterKind::kNoauxTcSigmoid
                         ? sum_of_two_largest(members, group_size)
                         : *std::max_element(members, members + group_size);
  }
  std::fill(taken.begin(), taken.end(), 0);
  for (int32_t i = 0; i < spec.topk_group; ++i)
    take_largest(group_score.data(), spec.n_group, taken);
  for (int32_t g = 0; g < spec.n_group; ++g) {
    if (taken[g]) continue;
    std::fill_n(choice.begin() + g * group_size, group_size, kMasked);
  }
}

}  // namespace

void CpuOps::route(const Tensor& logits, const Tensor& correction_bias, const RouterSpec& spec,
                   const Tensor& expert_ids, const Tensor& weights) {
  check_f32(logits, 2, "logits");
  check_f32(weights, 2, "weights");
  const int64_t tokens = logits.dim(0), experts = logits.dim(1);
  check_i32(expert_ids, tokens * spec.top_k, "expert_ids");
  SHOAL_CHECK(expert_ids.rank == 2 && weights.dim(0) == tokens && weights.dim(1) == spec.top_k &&
                  spec.top_k >= 1 && spec.top_k <= experts,
              "logits {}, top_k {}, weights {}", logits.shape_string(), spec.top_k,
              weights.shape_string());
  const bool grouped = spec.kind != RouterKind::kGreedySoftmax;
  SHOAL_CHECK(!grouped || (spec.n_group >= 1 && experts % spec.n_group == 0 &&
                           spec.topk_group >= 1 && spec.topk_group <= spec.n_group),
              "{} experts, {} groups, topk_group {}", experts, spec.n_group, spec.topk_group);
  if (correction_bias.defined()) {
    check_f32(correction_bias, 1, "correction_bias");
    SHOAL_CHECK(correction_bias.dim(0) == experts, "correction_bias {}",
                correction_bias.shape_string());
  }

  for_rows(tokens, experts * (8 + spec.top_k), [&](int64_t begin, int64_t end) {
    std::vector<float> scores(experts), choice(experts), group_score(grouped ? spec.n_group : 0);
    std::vector<uint8_t> taken(std::max<int64_t>(experts, group_score.size()));
    for (int64_t t = begin; t < end; ++t) {
      if (spec.kind == RouterKind::kNoauxTcSigmoid) {
        HWY_DYNAMIC_DISPATCH(sigmoid_row)(logits.row<float>(t), experts, scores.data());
      } else {
        HWY_DYNAMIC_DISPATCH(softmax_row)(logits.row<float>(t), experts, scores.data());
      }
      choice = scores;
      if (correction_bias.defined()) {
        for (int64_t e = 0; e < experts; ++e) choice[e] += correction_bias.as<float>()[e];
      }
      if (grouped) mask_groups(spec, experts / spec.n_group, choice, group_score, taken);
      int32_t* ids = expert_ids.row<int32_t>(t);
      float* w = weights.row<float>(t);
      std::fill(taken.begin(), taken.end(), 0);
      float sum = 0;
      for (int32_t j = 0; j < spec.top_k; ++j) {
        ids[j] = take_largest(choice.data(), experts, taken);
        w[j] = scores[ids[j]];
        sum += w[j];
      }
      for (int32_t j = 0; j < spec.top_k; ++j) {
        if (spec.norm_topk_prob) w[j] /= sum + 1e-20f;
        w[j] *= spec.routed_scaling_factor;
      }
    }
  });
}

}  // namespace shoal
#endif  // HWY_ONCE
