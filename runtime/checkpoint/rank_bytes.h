// RankBytes: what CheckpointSource reads from the files and holds in memory for one rank, from
// headers alone. A test loads and compares.
#pragma once

#include <array>
#include <cstdint>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/tensor_plan.h"

namespace shoal {

struct RankLayout {
  int ranks = 1;
  int rank = 0;
  bool dp_attention = false;
  DType dtype = DType::kBF16;  // F32 matrices become BF16, vectors F32; see CheckpointSource
};

struct RankBytes {
  struct Count {
    int64_t tensors = 0;
    uint64_t read = 0;  // bytes of the files
    uint64_t held = 0;  // bytes of memory
    Count& operator+=(const Count& other);
  };
  std::array<Count, kNumTensorKinds> by_kind;  // scales count with their matrix
  // The absorbed forms of kv_b_proj, computed when loading, in the layout's dtype.
  uint64_t derived = 0, derived_mtp = 0;

  const Count& of(TensorKind kind) const { return by_kind[static_cast<int>(kind)]; }
  Count total(bool with_mtp) const;  // the derived weights included
};

// Throws InvalidInput when a tensor of the plan is missing or has another shape, and when there are
// more ranks than heads or experts.
RankBytes rank_bytes(const Checkpoint& checkpoint, const ModelConfig& config,
                     const RankLayout& layout);

}  // namespace shoal
