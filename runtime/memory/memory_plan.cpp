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

uint64_t parse_swap_space(const std::string& text, bool on_gpu, bool to_files, uint64_t memory, int ranks) {
  if (text == "0") return 0;
  if (text == "auto") {
    if (!on_gpu && !to_files) return 0;
    const uint64_t most = uint64_t{on_gpu ? 4u : 1u} << 30;
    return memory == 0 ? most : std::min(most, memory / 8 / ranks);
  }
  const uint64_t bytes = parse_size("--swap-space", text);
  if (memory > 0 && bytes > memory / ranks) {
    throw_invalid("--swap-space {}: {} ranks of so much are more than the {} that are free", text, ranks,
                  gib_text(memory));
  }
  return bytes;
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
      return weights.total() + rope_table + expert_overhead - experts_on_host - experts_on_disk;
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

uint64_t MemoryPlan::host_bytes() const {
  uint64_t bytes = 0;
  for (const RankPlan& rank : ranks) bytes += rank.swap + rank.experts_on_host;
  return bytes;
}

Planner::Planner(ModelConfig config, FormOf stored, DeviceSpec device, int64_t least_len)
    : config_(std::move(config)),
      stored_(std::move(stored)),
      device_(std::move(device)),
      least_len_(least_len) {}

FormOf Planner::forms(const std::string& quantization, DType dtype) const {
  return forms_quantized(stored_ ? stored_ : forms_as_published(config_, dtype), quantization);
}

const ModelWeights& Planner::weights(const std::string& quantization, DType dtype) {
  auto& weights = weights_[{quantization, dtype}];
  if (!weights) {
    weights = std::make_unique<ModelWeights>(config_, forms(quantization, dtype), dtype, /*with_mtp=*/false);
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
      fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {}", o.quantization, o.ranks, rank,
                  o.dp_attention, static_cast<int>(o.dtype), static_cast<int>(kv), o.page_size,
                  max_model_len, o.max_num_seqs, o.max_num_batched_tokens, o.all_logits, o.with_mtp,
                  o.overlap_min_tokens);
  const auto at = steps_.find(key);
  if (at != steps_.end()) return at->second;
  return steps_[key] = dry_run(config_, forms(o.quantization, o.dtype),
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

bool Planner::experts_apart(const PlanOptions& options) const {
  return options.experts != ExpertHome::kDevice && config_.n_routed_experts > 0;
}

bool Planner::too_heavy(const PlanOptions& options, const PlanBudget& budget) {
  const ModelWeights::Held held = weights(options.quantization, options.dtype)
                                      .held({options.ranks - 1, options.ranks, options.dp_attention});
  const bool elsewhere = options.experts != ExpertHome::kDevice;
  return held.total() - (elsewhere ? held.of(TensorKind::kRoutedExperts) : 0) > budget.bytes;
}

RankPlan Planner::rank_needs(const PlanOptions& options, int rank, int64_t max_model_len) {
  const ParallelLayout layout{rank, options.ranks, options.dp_attention, options.overlap_min_tokens};
  RankPlan plan;
  plan.rank = rank;
  const int64_t rope = config_.is_mla() ? config_.qk_rope_head_dim : config_.head_dim;
  plan.rope_table = static_cast<uint64_t>(max_model_len * rope) * sizeof(float);
  const bool apart = experts_apart(options);
  if (options.with_mtp) {
    plan.weights = ModelWeights(config_, forms(options.quantization, options.dtype), options.dtype, true)
                       .held(layout, plan.rope_table, apart);
  } else {
    plan.weights = weights(options.quantization, options.dtype).held(layout, plan.rope_table, apart);
  }
  plan.step = step_memory(options, rank, max_model_len);
  if (apart) {
    // Numbers of rows, of experts on the device and elsewhere, instead of sort_by_expert's: at most two more
    // for each expert, and what aligning costs.
    const auto experts = static_cast<uint64_t>(
        split_evenly(config_.n_routed_experts, options.ranks)[rank].size());
    plan.step.workspace += (2 * experts * sizeof(int32_t) + 255) / 256 * 256 + 256;
  }
  plan.communication = plan.step.communication;
  if (!device_.on_gpu) return plan;
  plan.scratch = plan.step.scratch + gpu_scratch(config_, layout, device_.gpu);
  plan.sampler = 2 * kMiB;
  plan.communication = gpu_communication(options.ranks);
  if (options.graphs && !options.with_mtp && !apart) plan.graphs = plan.step.graph_inputs;
  return plan;
}

uint64_t Planner::graph_bytes(const PlanOptions& options) const {
  if (!device_.on_gpu || !options.graphs || experts_apart(options)) return 0;
  return static_cast<uint64_t>(graph_count(options.max_num_seqs) * config_.num_hidden_layers) *
         kGraphBytesPerLayer;
}

MemoryPlan Planner::plan(const PlanOptions& options, const PlanBudget& budget) {
  PlanOptions on_device = options;
  on_device.experts = ExpertHome::kDevice;
  const bool may_offload = experts_apart(options);
  if (!may_offload || (options.num_device_experts < 0 && !too_heavy(on_device, budget))) {
    MemoryPlan plan = plan_ranks(on_device, budget, 0, options.ranks - 1);
    if (plan.fits || !may_offload) return plan;
  }
  return plan_ranks(options, budget, 0, options.ranks - 1);
}

MemoryPlan Planner::plan_rank(const PlanOptions& options, const PlanBudget& budget, int rank) {
  return plan_ranks(options, budget, rank, rank);
}

MemoryPlan Planner::plan_ranks(const PlanOptions& options, const PlanBudget& budget, int first,
                               int last) {
  check_layout(config_, options.ranks, options.dp_attention);
  if (options.page_size <= 0 || options.page_size > 1024) {
    throw_invalid("--block-size {}: use 1 to 1024", options.page_size);
  }
  MemoryPlan plan;
  plan.options = options;
  plan.budget = budget;
  plan.max_model_len = wanted_len(options);
  for (int rank = first; rank <= last; ++rank) {
    // Rank 0 gathers logits, the last rank has the most heads: those between take what the last one takes.
    const bool like_last = first != last && rank > 0;
    RankPlan& mine = plan.ranks.emplace_back(
        rank_needs(options, like_last ? options.ranks - 1 : rank, plan.max_model_len));
    mine.rank = rank;
    if (like_last && rank + 1 < options.ranks) {
      mine.weights = weights(options.quantization, options.dtype)
                         .held({rank, options.ranks, options.dp_attention}, mine.rope_table,
                               experts_apart(options));
    }
    mine.driver = budget.driver + graph_bytes(options);
    const int64_t per_token = kv_bytes_per_token(options, rank);
    const auto page = static_cast<uint64_t>(per_token * options.page_size);
    mine.swap = options.swap_bytes / page * page;
    plan.kv_bytes_per_token = std::max(plan.kv_bytes_per_token, per_token);
  }
  if (experts_apart(options)) place_experts(plan);

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
  plan.max_model_len = std::min(plan.max_model_len, std::max<int64_t>(pages * options.page_size, 1));
  judge(plan);
  return plan;
}

void Planner::settle(MemoryPlan& plan, int64_t num_pages) {
  plan.num_pages = num_pages;
  plan.max_model_len = std::min(wanted_len(plan.options),
                                std::max<int64_t>(num_pages * plan.options.page_size, 1));
  for (RankPlan& rank : plan.ranks) {
    const RankPlan before = rank;
    rank = rank_needs(plan.options, rank.rank, plan.max_model_len);
    rank.driver = before.driver;
    rank.swap = before.swap;
    rank.experts = before.experts;
    rank.experts_on_host = before.experts_on_host;
    rank.experts_on_disk = before.experts_on_disk;
    rank.expert_slot = before.expert_slot;
    rank.expert_overhead = before.expert_overhead;
  }
  judge(plan);
}

void Planner::judge(MemoryPlan& plan) {
  const PlanOptions& o = plan.options;
  for (RankPlan& rank : plan.ranks) rank.kv_cache = kv_cache_bytes(o, rank.rank, plan.num_pages);
  const RankPlan& full = plan.fullest();
  const int64_t required = required_len(o);
  plan.fits = full.total() <= plan.budget.bytes && plan.num_pages * o.page_size >= required;
  plan.obstacle.clear();
  if (plan.fits) return;
  const int64_t pages = std::max(round_up(required, o.page_size) / o.page_size,
                                 o.kv_cache_tokens > 0 || o.kv_cache_memory_bytes > 0 ? plan.num_pages : 0);
  const uint64_t cache = kv_cache_bytes(o, full.rank, pages);
  plan.obstacle = fmt::format(
      "rank {} needs {} ({} of weights, {} of KV cache for {} tokens) and has {}", full.rank,
      gib_text(full.total() - full.kv_cache + cache), gib_text(full.of(MemoryUse::kWeights)),
      gib_text(cache), pages * o.page_size, gib_text(plan.budget.bytes));
}

std::vector<ExpertImage> Planner::expert_images(const std::string& quantization, DType dtype) const {
  const FormOf form_of = forms(quantization, dtype);
  const int64_t hidden = config_.hidden_size, inner = config_.moe_intermediate_size;
  std::vector<ExpertImage> images;
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    if (!config_.is_moe_layer(layer)) continue;
    std::array<WeightForm, ExpertImage::kParts> parts;
    for (int part = 0; part < ExpertImage::kParts; ++part) {
      const bool down = part == ExpertImage::kDown;
      parts[part] = form_of({.name = fmt::format("model.layers.{}.mlp.experts.0.{}.weight", layer,
                                                 ExpertImage::kNames[part]),
                             .kind = TensorKind::kRoutedExperts,
                             .n = down ? hidden : inner,
                             .k = down ? inner : hidden,
                             .cut = Cut::kExpert});
    }
    images.emplace_back(parts, hidden, inner);
  }
  return images;
}

// Attention, shared experts and the KV cache come first; routed experts get what is left, then host memory,
// then the disk.
void Planner::place_experts(MemoryPlan& plan) const {
  const PlanOptions& o = plan.options;
  const std::vector<ExpertImage> images = expert_images(o.quantization, o.dtype);
  const auto layers = static_cast<int64_t>(images.size());
  uint64_t slot = 0;
  for (const ExpertImage& image : images) slot = std::max(slot, image.bytes());
  // How many of the experts from `first` on, in the order in which they are dealt out, `room` holds. spare:
  // each layer has a place more, by which homes are changed.
  const auto count_in = [&](uint64_t room, int64_t first, int64_t total, bool spare) {
    int64_t count = 0;
    for (uint64_t taken = 0; first + count < total; ++count) {
      const ExpertImage& image = images[(first + count) % layers];
      taken += image.bytes() * (spare && count < layers ? 2 : 1);
      if (taken > room) break;
    }
    return count;
  };
  for (RankPlan& rank : plan.ranks) {
    const uint64_t experts = rank.weights.of(TensorKind::kRoutedExperts);
    const uint64_t others = rank.total() - experts + 2 * slot;
    const uint64_t room = plan.budget.bytes > others ? plan.budget.bytes - others : 0;
    // The cache gets a sequence of the required length at least, one of it for every sequence if half of
    // what is left allows that, and no more: an expert on the device speeds up every token.
    const int64_t length = round_up(required_len(o), o.page_size) / o.page_size;
    const uint64_t one = kv_cache_bytes(o, rank.rank, length);
    const uint64_t most = o.kv_cache_tokens > 0 ? kv_cache_bytes(o, rank.rank, pages_in(o, rank.rank, room))
                                                : kv_cache_bytes(o, rank.rank, length * o.max_num_seqs);
    const uint64_t cache = o.kv_cache_memory_bytes > 0 ? static_cast<uint64_t>(o.kv_cache_memory_bytes)
                           : o.kv_cache_tokens > 0     ? most
                                                       : std::max(one, std::min(most, room / 2));
    const int64_t own = split_evenly(config_.n_routed_experts, o.ranks)[rank.rank].size();
    const int64_t total = own * layers;
    ExpertCounts& counts = rank.experts;
    counts.device = count_in(room > cache ? room - cache : 0, 0, total, false);
    if (o.num_device_experts >= 0) counts.device = std::min(counts.device, o.num_device_experts * layers);
    counts.host = total - counts.device;
    if (o.experts == ExpertHome::kDisk && plan.budget.host > 0) {
      const uint64_t share = plan.budget.host / static_cast<uint64_t>(o.ranks);
      const uint64_t host = share > rank.swap ? share - rank.swap : 0;
      if (count_in(host, counts.device, total, true) < counts.host) {  // two more for what is read from files
        counts.host = count_in(host > 2 * slot ? host - 2 * slot : 0, counts.device, total, true);
      }
    }
    counts.disk = total - counts.device - counts.host;
    rank.expert_slot = slot;
    rank.expert_overhead = counts.device < total ? 2 * slot : 0;
    rank.experts_on_host = rank.experts_on_disk = 0;
    for (int64_t layer = 0; layer < layers; ++layer) {
      const ExpertCounts here = counts_of_layer(counts, layer, layers);
      const ExpertImage& image = images[layer];
      rank.experts_on_host += here.host * image.weight_bytes();
      rank.experts_on_disk += here.disk * image.weight_bytes();
      rank.expert_overhead += here.device * (image.bytes() - image.weight_bytes());
    }
  }
}

}  // namespace shoal
