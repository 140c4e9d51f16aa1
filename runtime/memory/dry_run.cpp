#include "runtime/memory/dry_run.h"

#include <algorithm>

#include "runtime/cache/paged_kv_cache.h"
#include "runtime/memory/dry_device.h"
#include "runtime/model/gqa_attention.h"
#include "runtime/model/mtp.h"

namespace shoal {
namespace {

// A layer gives back what it took, so one layer of each kind stands for all.
struct Shortened {
  ModelConfig config;
  int64_t first_moe = 0;  // number of the first mixture of experts in the whole model
  int64_t layers = 0;     // of the whole model
  // The whole model's number of layer i.
  int64_t layer(int64_t i) const {
    if (i == config.num_hidden_layers) return layers;  // multi-token prediction
    if (config.num_hidden_layers == layers) return i;
    return config.is_moe_layer(i) ? first_moe : 0;
  }
};

Shortened shorten(const ModelConfig& whole) {
  Shortened s{whole, 0, whole.num_hidden_layers};
  if (whole.n_routed_experts == 0) {
    s.config.num_hidden_layers = 1;
    return s;
  }
  if (whole.moe_layer_freq != 1) return s;
  const int64_t dense = std::min<int64_t>(whole.first_k_dense_replace, 1);
  s.first_moe = whole.first_k_dense_replace;
  const int64_t moe = whole.first_k_dense_replace < whole.num_hidden_layers ? 1 : 0;
  s.config.first_k_dense_replace = dense;
  s.config.num_hidden_layers = dense + moe;
  return s;
}

// Decode rows first, then prompts of at most max_model_len tokens, with contexts as long as can be.
struct StepRows {
  int64_t decode = 0, prefill = 0, logits = 0;
};

int64_t aligned_numbers(int64_t count) {
  constexpr int64_t kSection = 64;  // of StepBatch: sections begin at 256 bytes
  return (count + kSection - 1) / kSection * kSection;
}

int64_t upload_numbers(int64_t tokens, int64_t sequences, int64_t logits, int64_t table_width) {
  return 4 * aligned_numbers(tokens) + aligned_numbers(logits) + aligned_numbers(sequences + 1) +
         aligned_numbers(sequences) + sequences * table_width;
}

class DryModel {
 public:
  DryModel(const ModelConfig& config, const FormOf& forms, const StepSetup& setup)
      : short_(shorten(config)),
        setup_(setup),
        ops_(device_, setup.on_gpu, setup.gpu),
        comm_(setup.layout.rank, setup.layout.size),
        // One piece, as the real workspace once it is reserved: its peak loses nothing to chunks.
        workspace_(device_, size_t{1} << 44),
        weights_(short_.config, forms, [this](int64_t i) { return short_.layer(i); }, device_),
        ctx_{ops_, workspace_, comm_, setup.on_gpu ? setup.dtype : DType::kF32},
        model_(make_model(short_.config, setup.layout,
                          {setup.dtype, /*max_model_len=*/1, setup.limits.mtp}, weights_, ctx_)),
        table_width_((setup.limits.max_model_len + setup.page_size - 1) / setup.page_size),
        cache_(device_,
               KvCacheLayout(short_.config, local_kv_heads(short_.config, setup.layout),
                             short_.config.num_hidden_layers + (setup.limits.mtp ? 1 : 0),
                             setup.kv_dtype, setup.page_size),
               static_cast<int32_t>(table_width_)) {
    if (short_.config.n_routed_experts > 0) device_.set_choices(widest_choice());
  }

  void step(const StepRows& rows, ExpertExchange exchange) {
    workspace_.reset();
    workspace_.aside().reset();
    ModelBatch batch = make_batch(rows, exchange);
    comm_.set_tokens(tokens_for_exchange(batch));
    ops_.begin_step();
    const Tensor hidden = model_->forward(ctx_, batch, cache_.views());
    ops_.end_step();
    model_->logits(ctx_, batch, hidden);
    if (!setup_.limits.mtp || model_->mtp() == nullptr) return;
    batch = make_batch(rows, exchange);
    const Tensor next = model_->mtp()->forward(ctx_, batch, hidden, cache_.views().layers.back());
    model_->mtp()->logits(ctx_, batch, next);
  }

  StepMemory memory() {
    return {.workspace = workspace_.high_water_bytes(),
            .aside = workspace_.aside().high_water_bytes(),
            .scratch = setup_.on_gpu ? ops_.scratch_bytes(device_) : 0,
            .communication = comm_.gathered_bytes()};
  }
  int64_t table_width() const { return table_width_; }

 private:
  // The experts of a token that is sent to as many ranks as can be, this one among them.
  std::vector<int32_t> widest_choice() const {
    const ShardTable ranges = split_evenly(short_.config.n_routed_experts, setup_.layout.size);
    std::vector<int32_t> experts;
    for (int64_t i = 0; i < short_.config.router.top_k; ++i) {
      const Range& range = ranges[(setup_.layout.rank + i) % setup_.layout.size];
      experts.push_back(static_cast<int32_t>(range.begin + i / setup_.layout.size % range.size()));
    }
    return experts;
  }

  Tensor index(std::initializer_list<int64_t> dims) { return Tensor(index_.data, DType::kI32, dims); }

  ModelBatch make_batch(const StepRows& rows, ExpertExchange exchange) {
    ModelBatch batch;
    const int64_t T = rows.decode + rows.prefill;
    const int64_t longest = setup_.limits.max_model_len;
    for (int64_t left = rows.prefill, begin = rows.decode; left > 0;) {
      const int64_t tokens = std::min(left, longest);
      batch.prefills.push_back({begin, begin + tokens, longest,
                                rows.decode + static_cast<int64_t>(batch.prefills.size())});
      begin += tokens;
      left -= tokens;
    }
    const int64_t S = rows.decode + static_cast<int64_t>(batch.prefills.size());
    index_ = workspace_.tensor(DType::kI32, {upload_numbers(T, S, rows.logits, table_width_)});
    batch.num_tokens = T;
    batch.num_decode_tokens = rows.decode;
    batch.token_ids = batch.positions = batch.slots = index({T});
    batch.logits_rows = index({rows.logits});
    batch.all = {setup_.page_size, index({S + 1}), index({S}), index({S, table_width_})};
    batch.decode = {setup_.page_size, index({rows.decode + 1}), index({rows.decode}),
                    index({rows.decode, table_width_})};
    for (int64_t i = 0; i <= rows.decode; ++i) batch.query_start.push_back(static_cast<int32_t>(i));
    for (const ModelBatch::Prefill& p : batch.prefills) {
      batch.query_start.push_back(static_cast<int32_t>(p.row_end));
    }
    batch.context_len.assign(S, static_cast<int32_t>(longest));
    batch.exchange = exchange;
    batch.tokens_per_rank.assign(setup_.layout.size, 0);
    batch.logits_per_rank.assign(setup_.layout.size, 0);
    // All of a step may be one DP rank's, and why not this one's.
    const int mine = setup_.layout.dp_attention ? setup_.layout.rank : 0;
    batch.tokens_per_rank[mine] = T;
    batch.logits_per_rank[mine] = rows.logits;
    return batch;
  }

  std::vector<int64_t> tokens_for_exchange(const ModelBatch& batch) const {
    if (setup_.layout.dp_attention) return batch.tokens_per_rank;
    return sizes_of(split_evenly(batch.num_tokens, setup_.layout.size));
  }

  const Shortened short_;
  const StepSetup setup_;
  DryDevice device_;
  DryOps ops_;
  DryCollectives comm_;
  Workspace workspace_;
  DryWeights weights_;
  ExecContext ctx_;
  std::unique_ptr<Model> model_;
  const int64_t table_width_;
  PagedKvCache cache_;
  Tensor index_;
};

}  // namespace

StepMemory dry_run(const ModelConfig& config, const FormOf& forms, const StepSetup& setup) {
  const StepLimits& limits = setup.limits;
  DryModel model(config, forms, setup);
  const int64_t tokens = std::max<int64_t>(limits.max_num_batched_tokens, 1);
  const int64_t decode = std::min(limits.max_num_seqs, tokens);
  const auto logits = [&](int64_t rows) {
    return limits.all_logits ? rows : std::min(rows, limits.max_num_seqs);
  };
  const bool experts = config.n_routed_experts > 0;
  const auto steps_of = [&](int64_t all, ExpertExchange exchange) {
    // Prompts alone, tokens of generation alone, and both: what they share grows with all of them, what
    // attention takes with the larger.
    const int64_t generated = std::min(decode, all);
    model.step({.prefill = all, .logits = logits(all)}, exchange);
    model.step({.decode = generated, .logits = logits(generated)}, exchange);
    model.step({.decode = generated, .prefill = all - generated, .logits = logits(all)}, exchange);
  };
  steps_of(tokens, ExpertExchange::kReplicated);
  if (experts) {
    steps_of(tokens, ExpertExchange::kAllToAll);
    // The largest that is not run in two halves, which together take less.
    const int64_t whole = setup.layout.overlap_min_tokens - 1;
    if (0 < whole && whole < tokens) steps_of(whole, ExpertExchange::kAllToAll);
  }
  StepMemory memory = model.memory();
  constexpr int64_t kLargestGraph = 256;  // decode_buckets()
  const int64_t bucket = std::min(limits.max_num_seqs, kLargestGraph);
  memory.graph_inputs = static_cast<uint64_t>(upload_numbers(bucket, bucket, bucket, model.table_width())) *
                        sizeof(int32_t);
  return memory;
}

}  // namespace shoal
