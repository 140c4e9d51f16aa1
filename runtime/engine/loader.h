// Loader: from a model folder to a rank that can run steps. The one path that `shoal rank` and
// `shoal logits` share.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/backend.h"
#include "runtime/checkpoint/checkpoint_source.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/engine/model_runner.h"
#include "runtime/memory/memory_plan.h"
#include "runtime/model/model.h"
#include "runtime/model/model_config.h"
#include "runtime/offload/expert_store.h"

namespace shoal {

struct LoadOptions {
  std::string model_dir;               // a folder
  std::string load_format = "auto";    // auto | dummy (made-up weights: runtime/quantization/dummy_checkpoint.h)
  std::string dtype = "auto";          // auto (the checkpoint's) | float32 | bfloat16
  std::string kv_cache_dtype = "auto"; // auto (dtype) | float32 | bfloat16 | fp8 | int8
  std::string quantization = "none";   // or a scheme: while loading (runtime/quantization/scheme.h)
  bool dp_attention = false;
  bool load_mtp = false;               // the multi-token-prediction layer, when there is one
  int32_t page_size = 16;
  int64_t max_model_len = 0;           // 0: the model's, or what the KV pages hold if that is less
  int64_t max_num_seqs = 64;           // pages beyond max_num_seqs * max_model_len are not made
  int64_t kv_cache_tokens = 0;         // per rank; 0: as many as kv_cache_memory_bytes hold
  int64_t kv_cache_memory_bytes = 0;   // per rank; 0: on the CPU a quarter of the free memory, 4 GiB
                                       // at most; on a GPU what gpu_memory_utilization leaves
  double gpu_memory_utilization = 0.9; // of the GPU's memory, for weights, KV cache and workspace
  std::string gpu_memory_limit;        // --gpu-memory-limit: bytes of this rank for all of it; "": none
  std::string expert_offload = "off";  // off | auto | cpu | stream: experts that the device cannot hold
  int64_t num_gpu_experts = -1;        // of a layer and rank on the device at most; -1: as many as fit
  uint64_t swap_bytes = 0;             // of host memory of a rank, for KV pages (kv_tiers.h)
  std::string host_memory;             // --host-memory: of a node, for those; "": what is free
  bool enforce_eager = false;          // no CUDA graphs
  int64_t overlap_min_tokens = kOverlapMinTokens;  // per rank: see ParallelLayout
  int64_t max_num_batched_tokens = 0;  // the largest step that is planned and that a GPU is warmed up with;
                                       // 0: of 512 tokens is planned, and there is no warming up
  bool warm_up = true;                 // a GPU runs that step before load_model() returns
  bool all_logits = false;             // steps want the logits of every token
};

// What one rank holds. Not movable: the parts refer to each other.
struct LoadedModel {
  ModelConfig config;
  ParallelLayout layout;
  DType dtype = DType::kBF16;
  DType kv_dtype = DType::kBF16;
  int64_t max_model_len = 0;
  int32_t num_pages = 0;
  double load_seconds = 0;
  MemoryPlan plan;  // of this rank
  std::shared_ptr<Checkpoint> checkpoint;
  std::unique_ptr<CheckpointSource> source;
  std::unique_ptr<ExpertStore> experts;  // null: all of them are on the device, with the other weights
  std::unique_ptr<Model> model;
  std::unique_ptr<ModelRunner> runner;
};

// Collective: all ranks plan (runtime/memory), agree on the smallest number of KV pages, and load what was
// planned. Throws InvalidInput, before a weight is read, when the plan of any rank does not fit: the message
// ends with the smallest change that does. One model at a time: the rank's workspace is made for it.
// `progress` (may be empty): bytes read and bytes to read of this rank, on the calling thread.
std::unique_ptr<LoadedModel> load_model(
    RankRuntime& rank, const LoadOptions& options,
    const std::function<void(uint64_t bytes_read, uint64_t bytes_total)>& progress = {});

// What the device handed out against the plan, a line for each use: "weights: 1.20 GiB planned, 1.20 GiB
// taken".
std::vector<std::string> memory_lines(const MemoryPlan& plan, Device& device);

}  // namespace shoal
