#include "tests/bench/kernel_plan.h"

#include <algorithm>

namespace shoal::bench {
namespace {

ModelShape v2_lite() {
  return {.name = "V2-Lite",
          .hidden = 2048,
          .vocab = 102400,
          .heads = 16,
          .linears = {{"q_proj", 3072, 2048},
                      {"kv_a_proj", 576, 2048},
                      {"o_proj", 2048, 2048},
                      {"up_proj", 10944, 2048},
                      {"down_proj", 2048, 10944}},
          .weights = {DType::kBF16, DType::kI4x2, DType::kI8},
          .experts = 64,
          .local_experts = 64,
          .expert_inner = 1408,
          .router = {.kind = RouterKind::kGreedySoftmax, .top_k = 6}};
}

// One of eight ranks: heads, columns, vocabulary and experts divided by 8.
ModelShape v3_eighth() {
  return {.name = "V3/8",
          .hidden = 7168,
          .vocab = 16160,
          .heads = 16,
          .linears = {{"q_a_proj", 1536, 7168},
                      {"q_b_proj", 3072, 1536},
                      {"kv_a_proj", 576, 7168},
                      {"o_proj", 7168, 2048},
                      {"up_proj", 2304, 7168},
                      {"down_proj", 7168, 2304}},
          .weights = {DType::kF8E4M3, DType::kBF16, DType::kI4x2},
          .experts = 256,
          .local_experts = 32,
          .expert_inner = 2048,
          .router = {.kind = RouterKind::kNoauxTcSigmoid,
                     .top_k = 8,
                     .n_group = 8,
                     .topk_group = 4,
                     .norm_topk_prob = true,
                     .routed_scaling_factor = 2.5f}};
}

ModelShape qwen_7b() {
  return {.name = "Qwen-7B",
          .hidden = 3584,
          .vocab = 152064,
          .heads = 28,
          .kv_heads = 4,
          .linears = {{"q_proj", 3584, 3584}, {"up_proj", 18944, 3584}, {"down_proj", 3584, 18944}},
          .weights = {DType::kBF16, DType::kF8E4M3, DType::kI4x2, DType::kI8}};
}

ModelShape qwen_1_5b() {
  return {.name = "Qwen-1.5B",
          .hidden = 1536,
          .vocab = 151936,
          .heads = 12,
          .kv_heads = 2,
          .linears = {{"q_proj", 1536, 1536}, {"up_proj", 8960, 1536}, {"down_proj", 1536, 8960}},
          .weights = {DType::kF32, DType::kBF16, DType::kF8E4M3}};
}

}  // namespace

KernelPlan gpu_plan() {
  return {.models = {v2_lite(), v3_eighth(), qwen_7b()},
          .linear_rows = {1, 8, 64, 512, 4096},
          .tokens = {1, 32, 128, 4096},
          .batches = {1, 32, 128},
          .contexts = {1024, 8192, 32768},
          .prefills = {{512, 512}, {2048, 2048}, {512, 8192}}};
}

KernelPlan cpu_plan() {
  ModelShape lite = v2_lite();
  lite.weights = {DType::kF32, DType::kBF16, DType::kF8E4M3};
  ModelShape share = v3_eighth();
  share.weights = {DType::kF8E4M3};
  return {.models = {lite, share, qwen_1_5b()},
          .linear_rows = {1, 4, 16, 256},
          .tokens = {1, 16, 256},
          .batches = {1, 16},
          .contexts = {512, 8192},
          .prefills = {{256, 256}, {256, 4096}}};
}

KernelPlan tiny(KernelPlan plan) {
  // Even, and more than a scale group, with a remainder.
  constexpr int64_t kWidth = 160, kInner = 96, kExperts = 8;
  for (ModelShape& model : plan.models) {
    model.hidden = model.vocab = kWidth;
    for (LinearShape& linear : model.linears) linear.n = linear.k = kWidth;
    model.heads = 4;
    model.kv_heads = std::min<int64_t>(model.kv_heads, 2);
    if (model.experts == 0) continue;
    model.local_experts = model.local_experts == model.experts ? kExperts : kExperts / 2;
    model.experts = kExperts;
    model.expert_inner = kInner;
    model.router.top_k = 2;
    model.router.n_group = std::min(model.router.n_group, 4);
    model.router.topk_group = std::min(model.router.topk_group, 2);
  }
  const auto shrink = [](std::vector<int64_t>& counts, int64_t step) {
    for (size_t i = 0; i < counts.size(); ++i) counts[i] = 1 + static_cast<int64_t>(i) * step;
  };
  shrink(plan.linear_rows, 9);
  shrink(plan.tokens, 7);
  shrink(plan.batches, 1);
  shrink(plan.contexts, 20);
  for (size_t i = 0; i < plan.prefills.size(); ++i) {
    plan.prefills[i] = {5, 5 + static_cast<int64_t>(i) * 20};
  }
  return plan;
}

}  // namespace shoal::bench
