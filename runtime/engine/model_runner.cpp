#include "runtime/engine/model_runner.h"

#include <algorithm>

#include "runtime/model/gqa_attention.h"
#include "runtime/model/mtp.h"
#include "runtime/sampling/device_row.h"

namespace shoal {

ModelRunner::ModelRunner(RankRuntime& rank, Model& model, const ParallelLayout& layout,
                         DType dtype, DType kv_dtype, int32_t page_size, int32_t num_pages)
    : rank_(rank),
      model_(model),
      layout_(layout),
      dtype_(dtype),
      page_size_(page_size),
      num_pages_(num_pages),
      kv_cache_(rank.device(),
                KvCacheLayout(model.config(), local_kv_heads(model.config(), layout),
                              model.config().num_hidden_layers + (model.mtp() != nullptr ? 1 : 0),
                              kv_dtype, page_size),
                num_pages) {}

void ModelRunner::warm_up(int64_t max_num_batched_tokens, int64_t max_num_seqs,
                          int64_t max_model_len) {
  StepPlan plan;
  const int ranks = layout_.dp_attention ? layout_.size : 1;
  for (int64_t left = max_num_batched_tokens; left > 0;) {
    SequenceSlice& slice = plan.slices.emplace_back();
    slice.tokens.assign(std::min(left, max_model_len), 0);
    left -= static_cast<int64_t>(slice.tokens.size());
    slice.pages.assign((slice.tokens.size() + page_size_ - 1) / page_size_, num_pages_);
    // Rank by rank in turn would not be the plan's order: all tokens may be one rank's in any case.
    slice.dp_rank = ranks - 1;
    slice.sample = true;
  }
  // As many rows of logits as a step may want: its lengths do not matter to them.
  for (auto more = static_cast<int64_t>(plan.slices.size()); more < max_num_seqs; ++more) {
    SequenceSlice slice;
    slice.tokens = {0};
    slice.pages = {num_pages_};
    slice.dp_rank = ranks - 1;
    slice.sample = slice.absorbed = true;
    plan.slices.insert(plan.slices.begin(), slice);
  }
  logits_on_device(plan);
  rank_.device().synchronize();
}

bool ModelRunner::record_graphs(int64_t max_num_seqs, int64_t max_model_len,
                                const std::function<void(int, int)>& progress) {
  // run_mtp() goes on in the workspace where run() ended, which a replay does not know.
  if (model_.mtp() != nullptr) return false;
  graphs_ = std::make_unique<DecodeGraphs>(rank_, model_, layout_, kv_cache_.views(), num_pages_,
                                           max_model_len, dtype_);
  if (!graphs_->record(max_num_seqs, progress)) graphs_.reset();
  return graphs_ != nullptr;
}

ModelBatch ModelRunner::upload(const StepPlan& plan) {
  const StepBatch batch(plan, layout_, page_size_);
  const auto size = static_cast<int64_t>(batch.numbers().size());
  return batch.on_device(
      rank_.workspace().from_host(DType::kI32, batch.numbers().data(), {size}));
}

std::vector<Tensor> ModelRunner::logits_on_device(const StepPlan& plan) {
  rank_.collectives().at_step(plan.number);
  if (graphs_ != nullptr && graphs_->can_run(plan)) return graphs_->run(plan);
  rank_.workspace().reset();
  ExecContext ctx = rank_.exec(dtype_);
  const ModelBatch batch = upload(plan);
  ctx.ops.begin_step();
  hidden_ = model_.forward(ctx, batch, kv_cache_.views());
  ctx.ops.end_step();
  return {model_.logits(ctx, batch, hidden_)};
}

std::span<const float> ModelRunner::run(const StepPlan& plan) {
  return to_host(logits_on_device(plan));
}

std::vector<SampleResult> ModelRunner::run_and_sample(const StepPlan& plan,
                                                      std::span<const SampleInput> inputs) {
  DeviceSampler* sampler = rank_.sampler();
  const bool possible =
      sampler != nullptr && model_.config().vocab_size <= DeviceSampler::kMaxVocab &&
      std::all_of(inputs.begin(), inputs.end(), [](const SampleInput& in) {
        return in.params->num_logprobs <= DeviceSampler::kMaxTopLogprobs;
      });
  if (!possible) return sample_rows(run(plan), inputs);

  const std::vector<Tensor> pieces = logits_on_device(plan);
  std::vector<SampleResult> results;
  for (const Tensor& piece : pieces) {
    std::vector<DeviceRow> rows;
    for (int64_t r = 0; r < piece.dim(0); ++r) {
      const SampleInput& in = inputs[results.size() + r];
      rows.emplace_back(*in.params, in.tokens, in.prompt_len, in.end_token_ids);
    }
    std::vector<SampleRow> views;
    for (const DeviceRow& row : rows) views.push_back(row.row());
    if (views.empty()) continue;
    sampler->launch(piece, views);
    for (SampledToken& sampled : sampler->collect()) {
      SampleResult& result = results.emplace_back();
      result.token = sampled.token;
      if (inputs[results.size() - 1].params->num_logprobs >= 0) {
        result.logprobs = TokenLogprobs{sampled.logprob, std::move(sampled.top)};
      }
    }
  }
  SHOAL_CHECK(results.size() == inputs.size());
  if (results.empty()) rank_.device().synchronize();  // a failure belongs to its step
  return results;
}

std::span<const float> ModelRunner::run_mtp(const StepPlan& plan) {
  SHOAL_CHECK(model_.mtp() != nullptr, "the multi-token-prediction layer is not loaded");
  ExecContext ctx = rank_.exec(dtype_);  // hidden_ is in the workspace: not reset
  const ModelBatch batch = upload(plan);
  const Tensor hidden = model_.mtp()->forward(ctx, batch, hidden_.slice(0, 0, batch.num_tokens),
                                              kv_cache_.views().layers.back());
  return to_host({model_.mtp()->logits(ctx, batch, hidden)});
}

std::span<const float> ModelRunner::to_host(const std::vector<Tensor>& pieces) {
  if (rank_.rank() != 0) {
    // Rank 0 waits for its logits; the others for the end of the step, so that a failure belongs to it.
    rank_.device().synchronize();
    return {};
  }
  int64_t elements = 0;
  for (const Tensor& piece : pieces) elements += piece.num_elements();
  logits_.resize(elements);
  float* next = logits_.data();
  for (const Tensor& piece : pieces) {
    rank_.device().copy_to_host(next, piece.data, piece.num_bytes());
    next += piece.num_elements();
  }
  return logits_;
}

}  // namespace shoal
