// TensorPlan: every tensor that a config asks of its checkpoint, and how it is cut over ranks.
// Pure. The models of runtime/model load the same tensors by the same tables; a test compares the
// bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/shard.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model/model_config.h"

namespace shoal {

enum class TensorKind {
  kEmbedding,
  kHead,
  kAttention,
  kNorm,
  kDenseMlp,
  kRouter,
  kSharedExperts,
  kRoutedExperts,
  kMtp
};
inline constexpr int kNumTensorKinds = static_cast<int>(TensorKind::kMtp) + 1;
std::string_view tensor_kind_name(TensorKind kind);

// What decides which part a rank holds.
enum class Cut { kReplicated, kHeads, kKvHeads, kVocabulary, kColumns, kExpert };

struct PlannedTensor {
  std::string name;  // in the checkpoint, ".weight" included
  TensorKind kind = TensorKind::kNorm;
  int64_t n = 0;
  int64_t k = 0;  // 0: a vector of n
  Cut cut = Cut::kReplicated;
  bool cut_columns = false;  // of k; otherwise of n
  int64_t per_head = 0;      // kHeads, kKvHeads: elements of the cut dimension per head
  int64_t expert = 0;        // kExpert
  bool keep_f32 = false;     // a router: F32 stays F32
};

// All tensors of `config`, the MTP layer's with kind kMtp last. A quantised matrix is one tensor.
std::vector<PlannedTensor> tensor_plan(const ModelConfig& config);

// A planned tensor (a vector: [n, 1]). Throws InvalidInput when it is missing or has another shape.
std::unique_ptr<StoredWeight> planned_weight(const Checkpoint& checkpoint,
                                             const PlannedTensor& tensor);

// Refuses tensors that `config` knows no use for, up to three by name: a bias where the config has
// none, a layer too many, scales of what is not FP8. What may lie unused: rotary_emb.inv_freq,
// which is computed, and an lm_head beside tie_word_embeddings.
void check_all_known(const Checkpoint& checkpoint, const ModelConfig& config);

struct HeldSlice {
  Range rows, cols;  // empty when the rank holds nothing; cols {0, 1} for a vector
};
// REQUIRES: 0 <= rank < ranks <= heads (and routed experts).
HeldSlice held_slice(const PlannedTensor& tensor, const ModelConfig& config, int ranks, int rank,
                     bool dp_attention = false);

}  // namespace shoal
