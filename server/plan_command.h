// `shoal plan`: can these GPUs serve this model, and how fast? From config.json and tensor headers, or a
// published model's name alone: no GPU, no weights.
#pragma once

#include <string>

#include "runtime/memory/advice.h"

namespace shoal {

struct PlanCommandOptions {
  std::string model;                    // --model: folder, org/name, or a published model's name
  std::string revision = "main";        // --revision
  std::string load_format = "auto";     // --load-format auto|dummy: dummy looks at no weights
  std::string gpus;                     // --gpus "8xH100"; empty: this machine's CPU
  std::string device = "auto";          // --device auto|cpu
  std::string host_memory;              // --host-memory 512GiB: for all ranks of a node
  std::string quantization = "none";    // --quantization none|fp8|int8|int4
  int tensor_parallel_size = 0;         // --tensor-parallel-size; 0: as many as GPUs
  bool dp_attention = false;            // --enable-dp-attention
  std::string dtype = "auto";           // --dtype
  std::string kv_cache_dtype = "auto";  // --kv-cache-dtype
  int max_model_len = 0;                // --max-model-len
  int max_num_seqs = 64;                // --max-num-seqs
  int max_num_batched_tokens = 512;     // --max-num-batched-tokens
  int page_size = 16;                   // --block-size
  std::string expert_offload = "off";   // --expert-offload off|auto|cpu|stream
  double gpu_memory_utilization = 0.9;  // --gpu-memory-utilization
  std::string gpu_memory_limit;         // --gpu-memory-limit 24GiB: of a rank
  std::string swap_space = "auto";      // --swap-space 4GiB: host memory of a rank for KV pages
  bool json = false;                    // --json
};

struct PlanAnswer {
  bool fits = false;
  std::string text;  // what run_plan prints
};
// Throws InvalidInput.
PlanAnswer plan_answer(const PlanCommandOptions& options);

// Prints the answer. Returns 0: it fits, 1: it does not.
int run_plan(const PlanCommandOptions& options);

}  // namespace shoal
