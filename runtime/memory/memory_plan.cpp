#include "runtime/memory/memory_plan.h"

#include <algorithm>
#include <limits>

#include "kernels/base/error.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/model/gqa_attention.h"

namespace shoal {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// What CUDA's context with our kernels and cuBLASLt takes, and NCCL's channels on top with several ranks:
// from what other engines report on these cards. The loader goes by what is really taken.
constexpr uint64_t kDriverBytes = 600 * kMiB, kNcclBytes = 400 * kMiB;
// A recorded step has some 30 kernels a layer, 2 KiB each in the driver.
constexpr uint64_t kGraphBytesPerLayer = 30 * 2048;

int64_t graph_count(int64_t max_num_seqs) {
  constexpr int64_t kLargest = 256;  // decode_buckets(): 1, 2, 4, 8, .. 64 in eights, then in sixteens
  const int64_t n = std::min(max_num_seqs, kLargest);
  return 4 + std::max<int64_t>(std::min<int64_t>(n, 64) - 8, 0) / 8 + std::max<int64_t>(n - 64, 0) / 16;
}

uint64_t gpu_scratch(const ModelConfig& config, const ParallelLayout& layout, const GpuTraits& gpu) {
  // kernels/cuda: cuBLASLt's workspace, the cuts of a step, and a table entry (56 bytes) for each expert
  // matrix.
  const uint64_t library = (gpu.arch >= 90 ? 32 : 4) * kMiB;
  uint64_t tables = 0;
  if (config.n_routed_experts > 0) {
    const int64_t experts = split_evenly(config.n_routed_experts, layout.size)[layout.rank].size();
    for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
      if (config.is_moe_layer(i)) tables += static_cast<uint64_t>(experts) * 3 * 56;
    }
  }
  return library + kMiB + tables;
}

uint64_t gpu_communication(int ranks) {
  if (ranks == 1) return 0;
  // parallel/nccl: two peer buffers of 8 MiB with their flags in 2 MiB units, up to 8 ranks.
  constexpr int kMaxPeers = 8;
  const auto n = static_cast<uint64_t>(ranks);
  return (ranks <= kMaxPeers ? 18 * kMiB : 0) + (1 + n) * n * sizeof(int64_t);
}

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

std::string gib_text(uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= uint64_t{1} << 30) return fmt::format("{:.2f} GiB", value / (1 << 30));
  return fmt::format("{:.1f} MiB", value / (1 << 20));
}

PlanBudget gpu_budget(const DeviceSpec& device, double utilization, int ranks) {
  return {.bytes = static_cast<uint64_t>(utilization * static_cast<double>(device.bytes)),
          .driver = kDriverBytes + (ranks > 1 ? kNcclBytes : 0)};
}

PlanBudget cpu_budget(uint64_t free_bytes, int ranks) {
  // Other processes live there too, and the page cache that weights are read through.
  constexpr uint64_t kMostKv = uint64_t{4} << 30;
  const uint64_t share = free_bytes / static_cast<uint64_t>(ranks);
  return {.bytes = share, .most_kv = std::min(kMostKv, share / 4)};
}

uint64_t parse_memory_limit(const std::string& text, uint64_t device_bytes, const std::string& device) {
  const uint64_t bytes = parse_size("--gpu-memory-limit", text);
  if (bytes > device_bytes) {
    throw_invalid("--gpu-memory-limit {}: {} has {}", text, device, gib_text(device_bytes));
  }
  return bytes;
}

uint64_t RankPlan::of(MemoryUse use) const {
  switch (use) {
    case MemoryUse::kWeights:
      return weights.total() + rope_table - experts_on_host - experts_on_disk;
    case MemoryUse::kKvCache: return kv_cache;
    case MemoryUse::kWorkspace: return step.workspace + step.aside;
    case MemoryUse::kScratch: return scratch;
    case MemoryUse::kSampler: return sampler;
    case MemoryUse::kCommunication: return communication;
    case MemoryUse::kGraphs: return graphs;
    case MemoryUse::kOther: return 0;
  }
  SHOAL_CHECK(false, "memory use {}", static_cast<int>(use));
}

uint64_t RankPlan::planned() const {
  uint64_t sum = 0;
  for (int use = 0; use < kNumMemoryUses; ++use) sum += of(static_cast<MemoryUse>(use));
  return sum;
}

const RankPlan& MemoryPlan::fullest() const {
  return *std::max_element(ranks.begin(), ranks.end(), [](const RankPlan& a, const RankPlan& b) {
    return a.total() < b.total();
  });
}

Planner::Planner(ModelConfig config, FormOf stored, DeviceSpec device, int64_t least_len)
    : config_(std::move(config)),
      stored_(std::move(stored)),
      device_(std::move(device)),
      least_len_(least_len) {}

FormOf Planner::forms(WeightPrecision precision, DType dtype) const {
  if (precision == WeightPrecision::kStored && stored_) return stored_;
  return forms_of_precision(config_, precision, dtype);
}

const ModelWeights& Planner::weights(WeightPrecision precision, DType dtype) {
  auto& weights = weights_[{precision, dtype}];
  if (!weights) {
    weights = std::make_unique<ModelWeights>(config_, forms(precision, dtype), dtype, /*with_mtp=*/false);
  }
  return *weights;
}

int64_t Planner::wanted_len(const PlanOptions& options) const {
  const int64_t most = config_.max_position_embeddings;
  if (options.max_model_len < 0 || options.max_model_len > most) {
    throw_invalid("--max-model-len {}: the model's max_position_embeddings is {}",
                  options.max_model_len, most);
  }
  return options.max_model_len > 0 ? options.max_model_len : most;
}

int64_t Planner::required_len(const PlanOptions& options) const {
  if (options.max_model_len > 0) return wanted_len(options);
  // Who says how large the cache is knows what fits.
  if (options.kv_cache_tokens > 0 || options.kv_cache_memory_bytes > 0) return 1;
  return std::min(least_len_, wanted_len(options));
}

int64_t Planner::kv_bytes_per_token(const PlanOptions& options, int rank) const {
  return KvCacheLayout(config_, local_kv_heads(config_, {rank, options.ranks, options.dp_attention}),
                       config_.num_hidden_layers + (options.with_mtp ? 1 : 0),
                       parse_kv_cache_dtype(options.kv_cache_dtype, options.dtype), options.page_size)
      .bytes_per_token();
}

uint64_t Planner::kv_cache_bytes(const PlanOptions& options, int rank, int64_t num_pages) const {
  return static_cast<uint64_t>(
      KvCacheLayout(config_, local_kv_heads(config_, {rank, options.ranks, options.dp_attention}),
                    config_.num_hidden_layers + (options.with_mtp ? 1 : 0),
                    parse_kv_cache_dtype(options.kv_cache_dtype, options.dtype), options.page_size)
          .total_bytes(num_pages));
}

int64_t Planner::pages_in(const PlanOptions& options, int rank, uint64_t bytes) const {
  const int64_t page = options.page_size;
  // More than every sequence at its longest would never be used.
  int64_t most = options.max_num_seqs * round_up(wanted_len(options), page) / page;
  most = std::min(most, std::numeric_limits<int32_t>::max() / page - 1);
  if (options.kv_cache_tokens > 0) {
    return std::min(round_up(options.kv_cache_tokens, page) / page,
                    std::numeric_limits<int32_t>::max() / page - 1);
  }
  int64_t pages = std::min(
      static_cast<int64_t>(bytes / static_cast<uint64_t>(kv_bytes_per_token(options, rank) * page)), most);
  // The page for padding, and what aligning the planes costs.
  while (pages > 0 && kv_cache_bytes(options, rank, pages) > bytes) --pages;
  return pages;
}

const StepMemory& Planner::step_memory(const PlanOptions& o, int rank, int64_t max_model_len) {
  const DType kv = parse_kv_cache_dtype(o.kv_cache_dtype, o.dtype);
  const std::string key =
      fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {}", static_cast<int>(o.precision), o.ranks, rank,
                  o.dp_attention, static_cast<int>(o.dtype), static_cast<int>(kv), o.page_size,
                  max_model_len, o.max_num_seqs, o.max_num_batched_tokens, o.all_logits, o.with_mtp,
                  o.overlap_min_tokens);
  const auto at = steps_.find(key);
  if (at != steps_.end()) return at->second;
  return steps_[key] = dry_run(config_, forms(o.precision, o.dtype),
                               {.layout = {rank, o.ranks, o.dp_attention, o.overlap_min_tokens},
                                .dtype = o.dtype,
                                .kv_dtype = kv,
                                .page_size = o.page_size,
                                .on_gpu = device_.on_gpu,
                                .gpu = device_.gpu,
                                .limits = {.max_num_batched_tokens = o.max_num_batched_tokens,
                                           .max_num_seqs = o.max_num_seqs,
                                           .max_model_len = max_model_len,
                                           .all_logits = o.all_logits,
                                           .mtp = o.with_mtp}});
}

bool Planner::too_heavy(const PlanOptions& options, const PlanBudget& budget) {
  const ModelWeights::Held held = weights(options.precision, options.dtype)
                                      .held({options.ranks - 1, options.ranks, options.dp_attention});
  const bool elsewhere = options.experts != ExpertHome::kDevice;
  return held.total() - (elsewhere ? held.of(TensorKind::kRoutedExperts) : 0) > budget.bytes;
}

RankPlan Planner::rank_needs(const PlanOptions& options, int rank, int64_t max_model_len) {
  const ParallelLayout layout{rank, options.ranks, options.dp_attention, options.overlap_min_tokens};
  RankPlan plan;
  plan.rank = rank;
  if (options.with_mtp) {
    plan.weights = ModelWeights(config_, forms(options.precision, options.dtype), options.dtype, true)
                       .held(layout);
  } else {
    plan.weights = weights(options.precision, options.dtype).held(layout);
  }
  const int64_t rope = config_.is_mla() ? config_.qk_rope_head_dim : config_.head_dim;
  plan.rope_table = static_cast<uint64_t>(max_model_len * rope) * sizeof(float);
  plan.step = step_memory(options, rank, max_model_len);
  plan.communication = plan.step.communication;
  if (!device_.on_gpu) return plan;
  plan.scratch = plan.step.scratch + gpu_scratch(config_, layout, device_.gpu);
  plan.sampler = 2 * kMiB;
  plan.communication = gpu_communication(options.ranks);
  if (options.graphs && !options.with_mtp) plan.graphs = plan.step.graph_inputs;
  return plan;
}

MemoryPlan Planner::plan(const PlanOptions& options, const PlanBudget& budget) {
  check_layout(config_, options.ranks, options.dp_attention);
  if (options.page_size <= 0 || options.page_size > 1024) {
    throw_invalid("--block-size {}: use 1 to 1024", options.page_size);
  }
  MemoryPlan plan;
  plan.options = options;
  plan.budget = budget;
  plan.max_model_len = wanted_len(options);
  // Rank 0 gathers logits, the last rank has the most heads: the others take what the last one takes.
  for (int rank = 0; rank < options.ranks; ++rank) {
    const int like = rank == 0 ? 0 : options.ranks - 1;
    plan.ranks.push_back(rank_needs(options, like, plan.max_model_len));
    RankPlan& mine = plan.ranks.back();
    mine.rank = rank;
    if (rank != like) {
      mine.weights = weights(options.precision, options.dtype).held({rank, options.ranks, options.dp_attention});
    }
    mine.driver = budget.driver;
    if (device_.on_gpu && options.graphs) {
      mine.driver += static_cast<uint64_t>(graph_count(options.max_num_seqs) * config_.num_hidden_layers) *
                     kGraphBytesPerLayer;
    }
    plan.kv_bytes_per_token = std::max(plan.kv_bytes_per_token, kv_bytes_per_token(options, like));
  }
  if (options.experts != ExpertHome::kDevice && config_.n_routed_experts > 0) place_experts(plan);

  int64_t pages = std::numeric_limits<int64_t>::max();
  for (const RankPlan& rank : plan.ranks) {
    const uint64_t fixed = rank.total();
    uint64_t bytes = budget.bytes > fixed ? budget.bytes - fixed : 0;
    if (options.kv_cache_memory_bytes > 0) {
      bytes = static_cast<uint64_t>(options.kv_cache_memory_bytes);
    } else if (budget.most_kv > 0) {
      bytes = std::min(bytes, budget.most_kv);
    }
    pages = std::min(pages, pages_in(options, rank.rank, bytes));
  }
  plan.num_pages = pages;
  for (RankPlan& rank : plan.ranks) rank.kv_cache = kv_cache_bytes(options, rank.rank, pages);
  plan.max_model_len = std::min(plan.max_model_len, std::max<int64_t>(pages * options.page_size, 1));

  const RankPlan& full = plan.fullest();
  const int64_t required = required_len(options);
  plan.fits = full.total() <= budget.bytes && pages * options.page_size >= required;
  if (plan.fits) return plan;
  const auto one = kv_cache_bytes(options, full.rank, round_up(required, options.page_size) / options.page_size);
  const uint64_t needs = full.total() - full.kv_cache + std::max(one, options.kv_cache_tokens > 0 || options.kv_cache_memory_bytes > 0 ? full.kv_cache : 0);
  plan.obstacle = fmt::format("rank {} needs {} ({} of weights, {} of KV cache for {} tokens) and has {}",
                              full.rank, gib_text(needs), gib_text(full.of(MemoryUse::kWeights)),
                              gib_text(one), required, gib_text(budget.bytes));
  return plan;
}

// Attention, shared experts and the KV cache come first; routed experts get what is left.
void Planner::place_experts(MemoryPlan& plan) {
  const PlanOptions& o = plan.options;
  uint64_t on_host = 0;
  for (RankPlan& rank : plan.ranks) {
    const uint64_t experts = rank.weights.of(TensorKind::kRoutedExperts);
    const uint64_t others = rank.total() - experts;
    const uint64_t room = plan.budget.bytes > others ? plan.budget.bytes - others : 0;
    // The cache gets a sequence of the required length at least, and half of what is left at most.
    const uint64_t one = kv_cache_bytes(o, rank.rank, round_up(required_len(o), o.page_size) / o.page_size);
    const uint64_t most = kv_cache_bytes(o, rank.rank, pages_in(o, rank.rank, room));
    const uint64_t cache = o.kv_cache_memory_bytes > 0 ? static_cast<uint64_t>(o.kv_cache_memory_bytes)
                                                       : std::max(one, std::min(most, room / 2));
    const uint64_t on_device = std::min(experts, room > cache ? room - cache : 0);
    rank.experts_on_host = experts - on_device;
    on_host += rank.experts_on_host;
  }
  if (o.experts != ExpertHome::kDisk || plan.budget.host == 0 || on_host <= plan.budget.host) return;
  const double share = 1.0 - static_cast<double>(plan.budget.host) / static_cast<double>(on_host);
  for (RankPlan& rank : plan.ranks) {
    rank.experts_on_disk = static_cast<uint64_t>(share * static_cast<double>(rank.experts_on_host));
    rank.experts_on_host -= rank.experts_on_disk;
  }
}

}  // namespace shoal
