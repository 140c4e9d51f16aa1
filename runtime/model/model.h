// Model: a network, cut over ranks, written once for every back end and world size.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "parallel/exec_context.h"
#include "parallel/shard.h"
#include "parallel/weight_source.h"
#include "runtime/model/model_config.h"
#include "runtime/scheduler/step_plan.h"

namespace shoal {

// Tokens a rank from which a step that exchanges tokens (all-to-all) runs in two halves, one computing
// while the other's rows travel (overlap.h). Two halves read the experts' weights twice as long as those
// bound the products, and launch twice as much; what they hide is time on the wire. DeepSeek-V3 on 8
// H100: 32 experts x 44 MB at 3.35 TB/s are 0.4 ms a layer, 40 launches more 0.2 ms; a token's rows
// there and back are 90 KB, 0.3 us at 300 GB/s. 0.6 ms / 0.3 us = 2000 tokens, at which an expert has
// 250 rows in each half and is about to be bound by its FLOPs instead.
constexpr int64_t kOverlapMinTokens = 2048;

// How this rank is cut out of the model.
struct ParallelLayout {
  int rank = 0;
  int size = 1;
  bool dp_attention = false;  // requests are split over ranks instead of attention heads
  int64_t overlap_min_tokens = kOverlapMinTokens;
};

// The paged KV cache of one rank: per layer, views of [num_pages * page_size] slots. MLA: `k` holds the
// latent rows (kv_lora + qk_rope), `v` is undefined. Dense models: K and V.
struct KvCache {
  struct Layer {
    CacheTensor k, v;
  };
  std::vector<Layer> layers;
  int32_t page_size = 0;
};

// What a step looks like on this rank's device. Token rows: absorbed (decode) sequences first.
struct ModelBatch {
  Tensor token_ids;  // [T] I32
  Tensor positions;  // [T] I32
  Tensor slots;      // [T] I32: cache rows that this step's tokens are written to
  PagedBatch decode;     // the sequences of rows [0, num_decode_tokens)
  PagedBatch all;        // all sequences
  // Host view of all.query_start and all.context_len, by which a step can be cut in two (overlap.h);
  // empty: it is not.
  std::vector<int32_t> query_start, context_len;
  int64_t num_tokens = 0;
  int64_t num_decode_tokens = 0;  // rows that use the absorbed form of MLA
  // Host view of the other (prefill) sequences, for the expanded form of MLA.
  struct Prefill {
    int64_t row_begin = 0, row_end = 0;  // token rows
    int64_t context_len = 0;             // keys, this step's included
    int64_t sequence = 0;                // row of all.block_tables
  };
  std::vector<Prefill> prefills;
  Tensor logits_rows;  // [R] I32: token rows whose logits are wanted
  ExpertExchange exchange = ExpertExchange::kReplicated;
  // Without DP attention every rank has the same tokens. With it, tokens_per_rank[r] are rank r's
  // and logits_per_rank[r] of those are wanted.
  std::vector<int64_t> tokens_per_rank;
  std::vector<int64_t> logits_per_rank;
};

class ExpertStore;
class MtpModule;

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  // The hidden states after the final norm, [T, hidden]. Lives in the context's workspace.
  virtual Tensor forward(ExecContext& ctx, const ModelBatch& batch, const KvCache& cache) const = 0;
  // The logits of batch.logits_rows, [R, vocab] F32 on rank 0 (rows of all DP ranks, in rank order),
  // undefined elsewhere.
  virtual Tensor logits(ExecContext& ctx, const ModelBatch& batch, const Tensor& hidden) const = 0;
  // The multi-token-prediction layer; null unless the model has one and ModelOptions asked for it.
  // Its KV cache is layer num_hidden_layers.
  virtual const MtpModule* mtp() const = 0;
  // Of each layer with experts, in order, the rows that this rank's experts have been given since start;
  // empty where nobody counts.
  virtual std::vector<std::span<const uint64_t>> expert_rows() const { return {}; }
};

struct ModelOptions {
  DType dtype = DType::kBF16;  // F32 or BF16: of derived weights and of weights stored as F32
  int64_t max_model_len = 0;   // rows of the RoPE tables
  bool load_mtp = false;       // the multi-token-prediction layer too, when there is one
  ExpertStore* offload = nullptr;  // homes of routed experts (not the MTP layer's); null: the device
  // Model::expert_rows(): only where the device's memory is host memory, else only experts off the device
  // are counted.
  bool count_experts = false;
};

// Builds the model for config.architecture and loads this rank's weights from `source`. Throws
// InvalidInput when the layout does not fit (more ranks than heads or experts).
// `ctx` computes derived weights (the absorbed forms of MLA).
std::unique_ptr<Model> make_model(const ModelConfig& config, const ParallelLayout& layout,
                                  const ModelOptions& options, WeightSource& source,
                                  ExecContext& ctx);

// Copies host values to a device tensor of F32 or BF16 (rounded) of as many elements.
void store_values(Device& device, std::span<const float> values, const Tensor& out);

}  // namespace shoal
