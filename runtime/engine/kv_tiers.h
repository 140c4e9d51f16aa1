// What lies below the KV pages of a loaded model: host memory for preempted sequences and prompts,
// and the checkpoint of prompts in files. From flags to the ranks' PageStores and the scheduler's
// TierConfig.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/cache/kv_checkpoint.h"
#include "runtime/engine/loader.h"
#include "runtime/scheduler/scheduler.h"

namespace shoal {

struct TierOptions {
  std::string swap_space = "auto";           // --swap-space: see parse_swap_space()
  std::string preemption_mode = "auto";      // --preemption-mode: auto | swap | recompute
  std::string kv_checkpoint_dir;             // --kv-checkpoint-dir; empty: none
  std::string kv_checkpoint_size = "16GiB";  // --kv-checkpoint-size: bytes of a rank
  bool enable_prefix_caching = true;
};

// What LoadOptions::swap_bytes has to be for these options: so that the plan knows of it. See
// parse_swap_space(). Throws InvalidInput.
uint64_t swap_bytes(const TierOptions& options, const RankRuntime& rank);

// Throws InvalidInput for options that contradict each other or are no numbers, and for a directory
// that cannot be used: before anything is loaded. Null without --kv-checkpoint-dir.
std::shared_ptr<KvCheckpointDirectory> open_kv_checkpoint(const TierOptions& options,
                                                          const RankRuntime& rank);

// Collective. Gives the model's runner its PageStore (none when there is nothing to do) and says
// what rank 0's scheduler needs to know: pages in host memory as the model's plan has them.
// `quantization`: as loaded. Throws InvalidInput for sizes that hold no page.
TierConfig attach_tiers(const TierOptions& options, RankRuntime& rank, LoadedModel& model,
                        const std::string& quantization,
                        std::shared_ptr<KvCheckpointDirectory> directory);

// Stands for the weights and the config of a checkpoint: names, types, shapes and sizes of all
// tensors, config.json, and samples of every file.
Sha256 model_fingerprint(const Checkpoint& checkpoint);

}  // namespace shoal
