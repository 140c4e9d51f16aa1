// Everything that decides what the ranks do: the flags of `shoal serve` that are handed on to
// `shoal rank`, and of `shoal logits`.
#pragma once

#include <cstdint>
#include <string>

#include "server/rank_world.h"

namespace shoal {

struct EngineOptions {
  std::string model;                      // --model: folder or org/name
  std::string revision = "main";          // --revision
  std::string load_format = "auto";       // --load-format auto|dummy
  std::string device = "auto";            // --device auto|cpu|cuda
  std::string dtype = "auto";             // --dtype auto|float32|bfloat16
  std::string kv_cache_dtype = "auto";    // --kv-cache-dtype auto|float32|bfloat16|fp8|int8
  std::string quantization = "none";      // --quantization none|int4|int8|fp8|...
  int tensor_parallel_size = 1;           // --tensor-parallel-size
  bool dp_attention = false;              // --enable-dp-attention
  std::string expert_exchange = "auto";   // --expert-exchange auto|replicated|all-to-all
  int threads_per_rank = 0;               // --threads-per-rank; 0: cores / ranks
  int max_model_len = 0;                  // --max-model-len; 0: from the model and the memory
  int max_num_seqs = 64;                  // --max-num-seqs
  int max_num_batched_tokens = 512;       // --max-num-batched-tokens
  int page_size = 16;                     // --block-size
  int64_t kv_cache_tokens = 0;            // --kv-cache-tokens; 0: from --kv-cache-memory
  int64_t kv_cache_memory_bytes = 0;      // --kv-cache-memory; 0: 4 GiB or a quarter of what is free
  double gpu_memory_utilization = 0.9;    // --gpu-memory-utilization
  std::string gpu_memory_limit;           // --gpu-memory-limit SIZE: of a rank; empty: none
  std::string swap_space = "auto";        // --swap-space SIZE of host memory of a rank; 0: none
  std::string preemption_mode = "auto";   // --preemption-mode auto|swap|recompute
  std::string kv_checkpoint_dir;          // --kv-checkpoint-dir DIR
  std::string kv_checkpoint_size = "16GiB";  // --kv-checkpoint-size SIZE of a rank
  std::string expert_offload = "off";     // --expert-offload off|auto|cpu|stream
  int num_gpu_experts = -1;               // --num-gpu-experts: of a layer and rank; -1: as many as fit
  std::string host_memory;                // --host-memory SIZE: of a node, for experts; empty: what is free
  std::string gemm_cache;                 // --gemm-cache FILE
  bool enforce_eager = false;             // --enforce-eager
  bool enable_prefix_caching = true;      // --no-enable-prefix-caching
  bool async_scheduling = true;           // --no-async-scheduling
  RankPlacement placement;                // --hosts ...: not handed on
};

}  // namespace shoal
