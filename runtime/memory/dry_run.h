// Dry run: what a step takes, found by running the model itself on a device that has no memory. The
// layers, the collectives and the workspace are the ones that serve; only verbs and copies do nothing.
// So the figure is what the forward asks for, to the byte, and stays so when a layer changes.
#pragma once

#include <cstdint>

#include "kernels/base/gpu_traits.h"
#include "runtime/memory/weight_bytes.h"

namespace shoal {

// The largest step that will come.
struct StepLimits {
  int64_t max_num_batched_tokens = 512;
  int64_t max_num_seqs = 64;
  int64_t max_model_len = 2048;
  bool all_logits = false;  // logits of every token, not of one a sequence
  bool mtp = false;         // the multi-token-prediction layer runs after it
};

struct StepSetup {
  ParallelLayout layout;
  DType dtype = DType::kBF16;     // of the model
  DType kv_dtype = DType::kBF16;
  int32_t page_size = 16;
  bool on_gpu = true;             // else activations are F32, and verbs need no device scratch
  GpuTraits gpu;
  StepLimits limits;
};

struct StepMemory {
  uint64_t workspace = 0;      // activations, index tensors and logits: the most at any moment
  uint64_t aside = 0;          // of Workspace::aside(), on top
  uint64_t scratch = 0;        // chunks of the verbs' own workspace; 0 on the CPU
  uint64_t communication = 0;  // what the collectives gather into, on the CPU
  uint64_t graph_inputs = 0;   // of recorded decode steps
};

// `forms`: of the model's matrices. Takes some 10 ms; V3 on one rank 0.5 s.
StepMemory dry_run(const ModelConfig& config, const FormOf& forms, const StepSetup& setup);

}  // namespace shoal
