// route: all three kinds in one kernel, one warp per token. Scores and ranking keys of a token lie
// in shared memory; expert e belongs to lane e % 32. Joined with the inverted index, a key makes
// "largest value, lowest index of equals" a plain maximum (ordered.cuh), so every choice is one
// warp_max. A NaN ranks first: its token gets NaN weights, which a later check finds. Bound by
// latency: top_k such maxima after each other (5 shuffles each); the bytes (4 E per token) are
// nothing. One warp and not a block per token: no barriers, and a large step has many tokens.
#include <bit>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/ordered.cuh"
#include "kernels/cuda/rows.cuh"

namespace shoal {
namespace {

using namespace gpu;

constexpr int kTokensPerBlock = 4;
constexpr int64_t kMaxExperts =
    1024;                       // 8 bytes of shared memory each and per token: 32 KiB a block
constexpr uint32_t kTaken = 0;  // below the key of every number, -infinity too

struct RouteArgs {
  const float* logits;
  const float* correction_bias;  // or null
  int32_t* expert_ids;
  float* weights;
  int64_t tokens, logits_stride, weights_stride;
  int32_t experts, top_k, n_group, topk_group;
  int32_t
      group_lanes;  // a power of two: lanes that scan one group; n_group of them fit into a warp
  bool sigmoid, grouped, norm_topk_prob;
  float scaling;
};

// The experts of this lane: body(e).
template <typename Body>
__device__ __forceinline__ void for_own(int32_t experts, int lane, const Body& body) {
  for (int32_t e = lane; e < experts; e += kWarp) body(e);
}

// scores[e]: sigmoid or softmax of the logits of token t.
__device__ __forceinline__ void score(const RouteArgs& args, int64_t t, int lane, float* scores) {
  const float* logits = args.logits + t * args.logits_stride;
  if (args.sigmoid) {
    for_own(args.experts, lane, [&](int32_t e) { scores[e] = 1.0f / (1.0f + expf(-logits[e])); });
    return;
  }
  float largest = -INFINITY;
  for_own(args.experts, lane, [&](int32_t e) {
    scores[e] = logits[e];
    largest = scores[e] > largest ? scores[e] : largest;
  });
  largest = warp_max(largest);
  float total = 0;
  for_own(args.experts, lane, [&](int32_t e) {
    scores[e] = expf(scores[e] - largest);
    total += scores[e];
  });
  total = warp_sum(total);
  for_own(args.experts, lane, [&](int32_t e) { scores[e] /= total; });
}

// Sets the keys of the experts outside the topk_group best groups to that of -infinity.
__device__ __forceinline__ void mask_groups(const RouteArgs& args, int lane, uint32_t* keys) {
  const int32_t size = args.experts / args.n_group;
  const int32_t group = lane / args.group_lanes, member = lane % args.group_lanes;
  const uint32_t lowest = ordered(-INFINITY);
  uint32_t first = lowest, second = lowest;
  if (group < args.n_group) {
    for (int32_t i = member; i < size; i += args.group_lanes) {
      // Groups begin at different members: with sizes that are multiples of 32 the lanes would else
      // all read the same bank.
      const int32_t turned = (i + group) % size;
      const uint32_t key = keys[group * size + turned];
      second = key > first ? first : (key > second ? key : second);
      first = key > first ? key : first;
    }
  }
  for (int offset = args.group_lanes / 2; offset > 0; offset /= 2) {
    const uint32_t other_first = __shfl_xor_sync(kFullMask, first, offset);
    const uint32_t other_second = __shfl_xor_sync(kFullMask, second, offset);
    const uint32_t lower = first < other_first ? first : other_first;
    second = second > other_second ? second : other_second;
    second = lower > second ? lower : second;
    first = first > other_first ? first : other_first;
  }
  const bool two = args.sigmoid && size > 1;
  const uint32_t mine = two ? ordered(from_ordered(first) + from_ordered(second)) : first;
  int32_t better = 0;  // groups that rank before this one
  for (int32_t other = 0; other < args.n_group; ++other) {
    const uint32_t theirs = __shfl_sync(kFullMask, mine, other * args.group_lanes);
    better += theirs > mine || (theirs == mine && other < group) ? 1 : 0;
  }
  const uint32_t kept = __ballot_sync(kFullMask, group < args.n_group && better < args.topk_group);
  for_own(args.experts, lane, [&](int32_t e) {
    if ((kept >> (e / size * args.group_lanes) & 1) == 0) keys[e] = lowest;
  });
}

__global__ void route_kernel(RouteArgs args) {
  SHOAL_DYN_SMEM(float, smem);  // per token: scores [experts], keys [experts]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t t = int64_t{blockIdx.x} * kTokensPerBlock + warp;
  if (t >= args.tokens) return;  // a whole warp, and there are no barriers of the block
  float* scores = smem + warp * 2 * args.experts;
  uint32_t* keys = reinterpret_cast<uint32_t*>(scores + args.experts);
  score(args, t, lane, scores);
  for_own(args.experts, lane, [&](int32_t e) {
    keys[e] = ordered(args.correction_bias ? scores[e] + args.correction_bias[e] : scores[e]);
  });
  __syncwarp();
  if (args.grouped) mask_groups(args, lane, keys);

  const auto best_of_own = [&] {
    uint64_t best = 0;
    for_own(args.experts, lane, [&](int32_t e) {
      const uint64_t rank = ranked(keys[e], e);
      best = keys[e] != kTaken && rank > best ? rank : best;
    });
    return best;
  };
  uint64_t own = best_of_own();
  int32_t chosen = 0;  // lane j keeps choice j
  for (int32_t j = 0; j < args.top_k; ++j) {
    const int32_t expert = index_of_rank(warp_max(own));
    if (lane == j) chosen = expert;
    if (expert % kWarp == lane) {
      keys[expert] = kTaken;
      own = best_of_own();
    }
  }
  const bool holds = lane < args.top_k;
  float weight = holds ? scores[chosen] : 0.0f;
  const float sum = warp_sum(weight);
  if (args.norm_topk_prob) weight /= sum + 1e-20f;
  if (holds) {
    args.expert_ids[t * args.top_k + lane] = chosen;
    args.weights[t * args.weights_stride + lane] = weight * args.scaling;
  }
}

}  // namespace

void CudaOps::route(const Tensor& logits, const Tensor& correction_bias, const RouterSpec& spec,
                    const Tensor& expert_ids, const Tensor& weights) {
  const int64_t tokens = logits.dim(0), experts = logits.dim(1);
  SHOAL_CHECK(logits.dtype == DType::kF32 && logits.rank == 2 && logits.stride[1] == 1 &&
                  weights.dtype == DType::kF32 && weights.rank == 2 && weights.stride[1] == 1,
              "logits {}, weights {}", logits.shape_string(), weights.shape_string());
  check_i32_on_device(expert_ids, tokens * spec.top_k, "expert_ids");
  SHOAL_CHECK(expert_ids.rank == 2 && weights.dim(0) == tokens && weights.dim(1) == spec.top_k &&
                  spec.top_k >= 1 && spec.top_k <= experts && spec.top_k <= kWarp &&
                  experts <= kMaxExperts,
              "logits {}, top_k {}, weights {}; at most {} experts and {} choices",
              logits.shape_string(), spec.top_k, weights.shape_string(), kMaxExperts, kWarp);
  const bool grouped = spec.kind != RouterKind::kGreedySoftmax;
  SHOAL_CHECK(
      !grouped || (spec.n_group >= 1 && spec.n_group <= kWarp && experts % spec.n_group == 0 &&
                   spec.topk_group >= 1 && spec.topk_group <= spec.n_group),
      "{} experts, {} groups (at most {}), topk_group {}", experts, spec.n_group, kWarp,
      spec.topk_group);
  SHOAL_CHECK(!correction_bias.defined() ||
                  (correction_bias.dtype == DType::kF32 && correction_bias.contiguous() &&
                   correction_bias.rank == 1 && correction_bias.dim(0) == experts),
              "correction_bias {}", correction_bias.shape_string());
  if (tokens == 0) return;
  const auto groups = static_cast<uint32_t>(grouped ? spec.n_group : 1);
  const RouteArgs args{
      .logits = logits.as<const float>(),
      .correction_bias = correction_bias.defined() ? correction_bias.as<const float>() : nullptr,
      .expert_ids = expert_ids.as<int32_t>(),
      .weights = weights.as<float>(),
      .tokens = tokens,
      .logits_stride = logits.stride[0],
      .weights_stride = weights.stride[0],
      .experts = static_cast<int32_t>(experts),
      .top_k = spec.top_k,
      .n_group = spec.n_group,
      .topk_group = spec.topk_group,
      .group_lanes = kWarp / static_cast<int32_t>(std::bit_ceil(groups)),
      .sigmoid = spec.kind == RouterKind::kNoauxTcSigmoid,
      .grouped = grouped,
      .norm_topk_prob = spec.norm_topk_prob,
      .scaling = spec.routed_scaling_factor};
  launch(route_kernel, grid_for(tokens, kTokensPerBlock), dim3(kTokensPerBlock * kWarp),
         static_cast<size_t>(kTokensPerBlock * experts) * 2 * sizeof(float), stream(), args);
}

}  // namespace shoal
