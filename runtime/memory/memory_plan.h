// MemoryPlan: what every allocation of every rank will be, before anything is loaded. Pure: a model's
// config and the forms of its weights, a layout, limits and a budget in; bytes out. `shoal plan` prints
// it, the loader keeps to it (and refuses what does not fit), tests hold the ledger of the device
// against it.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/memory_ledger.h"
#include "runtime/memory/device_table.h"
#include "runtime/memory/dry_run.h"
#include "runtime/memory/weight_bytes.h"
#include "runtime/offload/expert_image.h"
#include "runtime/offload/expert_placement.h"

namespace shoal {

// What a flag may change.
struct PlanOptions {
  std::string quantization = "none";
  int ranks = 1;
  bool dp_attention = false;
  DType dtype = DType::kBF16;
  std::string kv_cache_dtype = "auto";
  int32_t page_size = 16;
  int64_t max_model_len = 0;  // 0: the model's, or what the KV pages hold if that is less
  int64_t max_num_seqs = 64;
  int64_t max_num_batched_tokens = 512;
  int64_t overlap_min_tokens = kOverlapMinTokens;  // see ParallelLayout
  int64_t kv_cache_tokens = 0;        // per rank; 0: from the two below
  int64_t kv_cache_memory_bytes = 0;  // per rank; 0: what the budget leaves
  // Where routed experts may live that the device's budget does not hold: nowhere (kDevice), in host memory,
  // or, what PlanBudget::host does not hold, on disk as well.
  ExpertHome experts = ExpertHome::kDevice;
  OffloadMode offload_mode = OffloadMode::kAuto;
  uint64_t swap_bytes = 0;  // of host memory of a rank, for KV pages that leave the device
  int64_t num_device_experts = -1;  // of a layer and rank on the device at most; -1: as many as fit
  bool with_mtp = false;
  bool all_logits = false;
  bool graphs = true;
};

// What there is.
struct PlanBudget {
  uint64_t bytes = 0;    // of a rank's device, for everything of ours
  uint64_t driver = 0;   // that the driver and its libraries take of it
  uint64_t host = 0;     // of host memory for all ranks of a node; 0: unknown
  uint64_t most_kv = 0;  // KV bytes that are taken without being asked for; 0: no bound
};

// What a rank takes.
struct RankPlan {
  int rank = 0;
  ModelWeights::Held weights;
  uint64_t rope_table = 0;
  StepMemory step;           // activations, scratch, graph inputs
  uint64_t scratch = 0;      // of the kernels, tables and libraries' workspace included
  uint64_t sampler = 0;
  uint64_t communication = 0;
  uint64_t graphs = 0;       // inputs; what the driver keeps of a graph is in `driver`
  uint64_t driver = 0;
  uint64_t kv_cache = 0;
  // Where experts may live elsewhere: how many live where, and of weights.of(kRoutedExperts) the bytes that
  // are not on the device.
  ExpertCounts experts;
  uint64_t experts_on_host = 0, experts_on_disk = 0;
  uint64_t swap = 0;             // host memory for KV pages: swap_bytes in whole pages
  uint64_t expert_slot = 0;      // bytes of the largest expert
  uint64_t expert_overhead = 0;  // slots that experts are streamed to, and alignment of those on the device

  uint64_t of(MemoryUse use) const;  // what the ledger should say
  uint64_t planned() const;          // sum of of()
  uint64_t total() const { return planned() + driver; }
};

struct MemoryPlan {
  PlanOptions options;
  PlanBudget budget;
  std::vector<RankPlan> ranks;
  int64_t kv_bytes_per_token = 0;  // of a rank, the largest
  int64_t num_pages = 0;           // per rank; 0: not even one
  int64_t max_model_len = 0;
  bool fits = false;
  std::string obstacle;  // where it does not: "rank 0 needs 13.20 GiB of 8.00 GiB"

  // Tokens that the KV pages of all ranks hold.
  int64_t kv_tokens() const {
    return num_pages * options.page_size * (options.dp_attention ? options.ranks : 1);
  }
  const RankPlan& fullest() const;
  // Of host memory that is not the device's own, all planned ranks: swapped KV pages and experts.
  uint64_t host_bytes() const;
  // What is left of the fullest rank's budget.
  int64_t left() const { return static_cast<int64_t>(budget.bytes) - static_cast<int64_t>(fullest().total()); }
};

// Plans of one model on one kind of device. Keeps what plans share, so not thread-safe.
class Planner {
 public:
  // stored: the forms of the model's own weights; empty: as the model is published. A planned length that
  // nobody asked for is at least `least_len`, or the model's: a server of ten tokens serves nobody.
  Planner(ModelConfig config, FormOf stored, DeviceSpec device, int64_t least_len = 2048);

  // With experts all on the device if that fits and is not forbidden; plan.options.experts says so then.
  // Throws InvalidInput for a layout or limits that no budget can help (more ranks than heads, a
  // --max-model-len beyond the model's).
  MemoryPlan plan(const PlanOptions& options, const PlanBudget& budget);
  // The plan of one rank only, with the pages that its own budget allows. Experts are placed as options say:
  // all ranks have to do the same.
  MemoryPlan plan_rank(const PlanOptions& options, const PlanBudget& budget, int rank);
  // The same plan with the number of pages that all ranks agreed on.
  void settle(MemoryPlan& plan, int64_t num_pages);
  // Whether the weights alone are more than the budget: what costs nothing to know.
  bool too_heavy(const PlanOptions& options, const PlanBudget& budget);

  // One rank's part, with KV pages still at 0 and `max_model_len` tokens of context.
  RankPlan rank_needs(const PlanOptions& options, int rank, int64_t max_model_len);
  uint64_t graph_bytes(const PlanOptions& options) const;  // that the driver keeps of recorded steps
  int64_t kv_bytes_per_token(const PlanOptions& options, int rank) const;
  uint64_t kv_cache_bytes(const PlanOptions& options, int rank, int64_t num_pages) const;
  // Pages that `bytes` of KV cache hold, no more than every sequence at its longest would use.
  int64_t pages_in(const PlanOptions& options, int rank, uint64_t bytes) const;
  int64_t wanted_len(const PlanOptions& options) const;
  // The shortest context that counts as fitting.
  int64_t required_len(const PlanOptions& options) const;

  // How an expert of each layer with experts lies in memory, in order.
  std::vector<ExpertImage> expert_images(const std::string& quantization, DType dtype) const;

  const ModelWeights& weights(const std::string& quantization, DType dtype);
  FormOf forms(const std::string& quantization, DType dtype) const;
  const ModelConfig& config() const { return config_; }
  const DeviceSpec& device() const { return device_; }

 private:
  MemoryPlan plan_ranks(const PlanOptions& options, const PlanBudget& budget, int first, int last);
  void judge(MemoryPlan& plan);
  bool experts_apart(const PlanOptions& options) const;  // from the other weights, to live anywhere
  const StepMemory& step_memory(const PlanOptions& options, int rank, int64_t max_model_len);
  void place_experts(MemoryPlan& plan) const;

  ModelConfig config_;
  FormOf stored_;
  DeviceSpec device_;
  int64_t least_len_;
  std::map<std::pair<std::string, DType>, std::unique_ptr<ModelWeights>> weights_;
  std::map<std::string, StepMemory> steps_;
};

// A GPU's budget when none is given: its memory x --gpu-memory-utilization.
PlanBudget gpu_budget(const DeviceSpec& device, double utilization, int ranks);
// Of ranks that share `free_bytes` of host memory.
PlanBudget cpu_budget(uint64_t free_bytes, int ranks);
// --swap-space: bytes of host memory of a rank, for KV pages that leave the device. auto: an eighth of the
// host's `memory` (0: unknown) over the ranks, at most 4 GiB on a GPU and, where pages pass through it to
// files, 1 GiB on the CPU; without files 0 on the CPU, where the KV cache itself is host memory. Throws
// InvalidInput for what is no size, or more than a rank's share of the memory.
uint64_t parse_swap_space(const std::string& text, bool on_gpu, bool to_files, uint64_t memory, int ranks);
// --gpu-memory-limit: bytes of one rank. Throws InvalidInput for what is no size, 0, negative, or more than
// the device has.
uint64_t parse_memory_limit(const std::string& text, uint64_t device_bytes, const std::string& device);

std::string gib_text(uint64_t bytes);  // "13.20 GiB", "12.5 MiB"

}  // namespace shoal
