// A model loaded with so many of its experts on the device and on the host: limits made from the
// plan.
#pragma once

#include <memory>
#include <string>

#include "runtime/engine/loader.h"
#include "tests/support/ranks.h"

namespace shoal {

inline LoadOptions offload_options(const std::string& dir, const std::string& dtype = "float32") {
  LoadOptions options;
  options.model_dir = dir;
  options.dtype = dtype;
  options.page_size = 8;
  options.max_model_len = 128;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 128;
  options.kv_cache_tokens = 256;
  options.enforce_eager = true;  // what has no graphs is compared with what has none
  return options;
}

// What one rank's experts take, beside what everything else does.
struct OffloadLimits {
  uint64_t others = 0;              // with the slots that experts are streamed to
  uint64_t expert = 0;              // the image of the largest
  int64_t experts = 0, layers = 0;  // of this rank; layers with experts

  explicit OffloadLimits(const LoadedModel& model) {
    DeviceSpec device;
    device.on_gpu = !rank_runtime().on_cpu();
    if (device.on_gpu) device.gpu = rank_runtime().gpu_traits();
    Planner planner(model.config, forms_of_checkpoint(model.checkpoint, model.dtype), device);
    PlanOptions options = model.plan.options;
    options.experts = ExpertHome::kDisk;
    const MemoryPlan none = planner.plan_rank(options, {.bytes = 0}, rank_runtime().rank());
    const RankPlan& rank = none.ranks.front();
    others = rank.total();
    expert = rank.expert_slot;
    experts = rank.experts.total();
    layers = std::ssize(planner.expert_images(options.quantization, options.dtype));
  }
  // Of a rank, for so many experts on the device, where all are of one size.
  std::string device(int64_t count) const { return std::to_string(others + count * expert); }
  // Of all ranks, for so many a rank in host memory and the others on disk.
  std::string host(int64_t count) const {
    return std::to_string(rank_runtime().size() * host_bytes(count));
  }
  // Whether host(count) holds `all`, since nothing has to be read from files then.
  bool holds(int64_t count, int64_t all) const {
    return count >= experts || (all + std::min(all, layers)) * expert <= host_bytes(count);
  }

 private:
  // Two for reading, and each layer's spare place.
  uint64_t host_bytes(int64_t count) const {
    return (2 + count + std::min(count, layers)) * expert + expert / 2;
  }
};

}  // namespace shoal
