#include "runtime/engine/model_runner.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/model/gqa_attention.h"
#include "runtime/model/mtp.h"
#include "runtime/offload/expert_store.h"
#include "runtime/sampling/device_row.h"
#include "runtime/scheduler/plan_bounds.h"

namespace shoal {
namespace {

StepLogits with_all_rows(const Tensor& logits) {
  StepLogits result{logits, {}};
  if (!logits.defined()) return result;  // not rank 0
  result.rows.resize(logits.dim(0));
  std::iota(result.rows.begin(), result.rows.end(), int64_t{0});
  return result;
}

}  // namespace

ModelRunner::ModelRunner(RankRuntime& rank, Model& model, const ParallelLayout& layout, DType dtype,
                         DType kv_dtype, int32_t page_size, int32_t num_pages)
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
  // As many rows of logits as a step may want, its tokens together no more than a step's.
  const int64_t generated = std::min(max_num_seqs, max_num_batched_tokens) - 1;
  const auto add = [&](int64_t tokens, int64_t pages) -> SequenceSlice& {
    SequenceSlice& slice = plan.slices.emplace_back();
    slice.tokens.assign(tokens, 0);
    slice.pages.assign(std::max((tokens + page_size_ - 1) / page_size_, pages), num_pages_);
    // Rank by rank in turn would not be the plan's order: all tokens may be one rank's in any case.
    slice.dp_rank = ranks - 1;
    slice.sample = true;
    return slice;
  };
  for (int64_t i = 0; i < generated; ++i) {
    // One block table is as wide as that of the longest sequence.
    add(1, i == 0 ? (max_model_len + page_size_ - 1) / page_size_ : 1).absorbed = true;
  }
  for (int64_t left = max_num_batched_tokens - generated; left > 0;) {
    const int64_t tokens = std::min(left, max_model_len);
    add(tokens, (max_model_len + page_size_ - 1) / page_size_);
    left -= tokens;
  }
  queue(plan);
  if (rank_.sampler() != nullptr) {
    const MemoryScope scope(rank_.device(), MemoryUse::kSampler);
    samples_ = rank_.device().allocate(max_num_seqs * sizeof(int32_t));
    rank_.device().zero(samples_.data(), samples_.bytes());
    share_samples(max_num_seqs);
  }
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

Tensor ModelRunner::samples() const {
  return Tensor(samples_.data(), DType::kI32,
                {static_cast<int64_t>(samples_.bytes() / sizeof(int32_t))});
}

void ModelRunner::share_samples(int64_t count) {
  std::vector<int64_t> rows(rank_.size(), 0);
  rows[0] = count;
  const Tensor all = samples().slice(0, 0, count).reshape({count, 1});
  rank_.collectives().all_gather_rows(all.slice(0, 0, rows[rank_.rank()]), rows, all);
}

void ModelRunner::feed(const StepBatch& batch, const Tensor& memory) {
  if (!batch.has_sources()) return;
  rank_.sampler()->feed(samples(), batch.sources(memory), batch.on_device(memory).token_ids);
}

ModelBatch ModelRunner::upload(const StepPlan& plan) {
  const StepBatch batch(plan, layout_, page_size_);
  const auto size = static_cast<int64_t>(batch.numbers().size());
  const Tensor memory = rank_.workspace().from_host(DType::kI32, batch.numbers().data(), {size});
  feed(batch, memory);
  return batch.on_device(memory);
}

StepLogits ModelRunner::queue(const StepPlan& plan) {
  // One page more than the scheduler knows of: the one for padding.
  check_plan(plan, {int64_t{num_pages_} + 1, model_.config().vocab_size, num_samples_});
  rank_.collectives().at_step(plan.number);
  if (std::any_of(plan.slices.begin(), plan.slices.end(),
                  [](const SequenceSlice& s) { return s.from_sample >= 0; })) {
    share_samples(num_samples_);
  }
  num_samples_ = plan.num_samples();
  if (graphs_ != nullptr && graphs_->can_run(plan)) {
    return graphs_->run(
        plan, [this](const StepBatch& batch, const Tensor& memory) { feed(batch, memory); });
  }
  rank_.workspace().reset();
  ExecContext ctx = rank_.exec(dtype_);
  const ModelBatch batch = upload(plan);
  ctx.ops.begin_step();
  hidden_ = model_.forward(ctx, batch, kv_cache_.views());
  ctx.ops.end_step();
  const StepLogits logits = with_all_rows(model_.logits(ctx, batch, hidden_));
  if (offload_ != nullptr) offload_->end_step();
  return logits;
}

OffloadStats ModelRunner::offload_stats() const {
  return offload_ != nullptr ? offload_->stats() : OffloadStats{};
}

RankReport ModelRunner::report() const {
  RankReport report;
  RankStats& s = report.stats;
  s.collective_seconds = rank_.collectives().seconds();
  s.bytes_sent = rank_.collectives().bytes_sent_by_verb();
  for (int use = 0; use < kNumMemoryUses; ++use) {
    s.memory[use] = rank_.device().ledger().peak(static_cast<MemoryUse>(use));
  }
  s.resident_bytes = resident_bytes();
  for (const std::span<const uint64_t> rows : model_.expert_rows()) {
    ++report.layers;
    report.expert_rows.insert(report.expert_rows.end(), rows.begin(), rows.end());
  }
  for (const uint64_t rows : report.expert_rows) s.expert_rows += rows;
  return report;
}

std::span<const float> ModelRunner::run(const StepPlan& plan) { return to_host(queue(plan)); }

// A device tells late what it failed with: in the step it runs or in the one queued behind.
template <typename Work>
auto ModelRunner::naming_steps(const Work& work) {
  try {
    return work();
  } catch (const DeviceFault& fault) {
    const std::string before = ended_ + 1 < queued_ ? fmt::format("{} or ", queued_ - 1) : "";
    throw DeviceFault(fmt::format("in step {}{}: {}", before, queued_, fault.what()));
  }
}

bool ModelRunner::can_sample_on_device(int32_t most_logprobs) const {
  return rank_.sampler() != nullptr && model_.config().vocab_size <= DeviceSampler::kMaxVocab &&
         most_logprobs <= DeviceSampler::kMaxTopLogprobs;
}

bool ModelRunner::can_run_ahead(const StepPlan& plan, int32_t most_logprobs) const {
  const bool host_exchange =
      plan.exchange == ExpertExchange::kAllToAll && model_.config().n_routed_experts > 0;
  return can_sample_on_device(most_logprobs) && model_.mtp() == nullptr && !host_exchange &&
         offload_ == nullptr && plan.num_samples() <= samples().num_elements() &&
         std::none_of(plan.slices.begin(), plan.slices.end(),
                      [](const SequenceSlice& s) { return s.all_logits; });
}

void ModelRunner::begin(const StepPlan& plan) {
  queued_ = plan.number;
  naming_steps([&] {
    logits_ = queue(plan);
    const auto before = std::exchange(end_of_queued_, rank_.device().record());
    if (rank_.rank() == 0 || !before) return;
    before->wait();
    ended_ = plan.number - 1;
  });
}

void ModelRunner::wait() {
  if (!end_of_queued_) return;
  naming_steps([&] { end_of_queued_->wait(); });
  ended_ = queued_;
}

void ModelRunner::move_pages(const StepPlan& plan) {
  if (pages_ == nullptr) return StepRunner::move_pages(plan);
  naming_steps([&] { pages_->run(plan); });
}

int64_t ModelRunner::loaded(uint64_t ticket) {
  return pages_ == nullptr ? kNotMine : pages_->loaded(ticket);
}

StepRunner::CopyTimes ModelRunner::copy_times() const {
  return pages_ == nullptr ? CopyTimes{} : pages_->copy_times();
}

void ModelRunner::sample(std::span<const SampleInput> inputs) {
  sampling_ = {queued_, std::move(end_of_queued_), {}, {}};
  int32_t most_logprobs = -1;
  for (const SampleInput& in : inputs) {
    if (in.params != nullptr) most_logprobs = std::max(most_logprobs, in.params->num_logprobs);
  }
  if (!can_sample_on_device(most_logprobs)) {
    sampling_.results = naming_steps([&] { return sample_rows(to_host(logits_), inputs); });
    return;
  }
  SHOAL_CHECK(inputs.size() == logits_.rows.size(), "{} inputs for {} rows", inputs.size(),
              logits_.rows.size());
  sampling_.results.resize(inputs.size());
  std::vector<DeviceRow> rows;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const SampleInput& in = inputs[i];
    if (in.params == nullptr) continue;
    rows.emplace_back(*in.params, in.tokens, in.prompt_len, in.end_token_ids);
    sampling_.rows.push_back(i);
    if (in.params->num_logprobs >= 0) sampling_.results[i].logprobs.emplace();
  }
  if (rows.empty()) return;
  std::vector<SampleRow> views;
  for (size_t r = 0; r < rows.size(); ++r) {
    views.push_back(rows[r].row());
    views.back().logits_row = logits_.rows[sampling_.rows[r]];
    views.back().index = static_cast<int64_t>(sampling_.rows[r]);
  }
  naming_steps([&] {
    rank_.sampler()->launch(logits_.all, views, samples_.data() != nullptr ? samples() : Tensor());
  });
}

std::vector<SampleResult> ModelRunner::collect() {
  naming_steps([&] {
    // A failure of a step that samples nothing belongs to it all the same.
    sampling_.end_of_step->wait();
    if (sampling_.rows.empty()) return;
    const std::vector<SampledToken> sampled = rank_.sampler()->collect();
    SHOAL_CHECK(sampled.size() == sampling_.rows.size());
    for (size_t r = 0; r < sampled.size(); ++r) {
      SampleResult& result = sampling_.results[sampling_.rows[r]];
      result.token = sampled[r].token;
      if (result.logprobs) result.logprobs = TokenLogprobs{sampled[r].logprob, sampled[r].top};
    }
  });
  ended_ = sampling_.step;
  return std::move(sampling_.results);
}

std::span<const float> ModelRunner::run_mtp(const StepPlan& plan) {
  SHOAL_CHECK(model_.mtp() != nullptr, "the multi-token-prediction layer is not loaded");
  ExecContext ctx = rank_.exec(dtype_);  // hidden_ is in the workspace: not reset
  const ModelBatch batch = upload(plan);
  const Tensor hidden = model_.mtp()->forward(ctx, batch, hidden_.slice(0, 0, batch.num_tokens),
                                              kv_cache_.views().layers.back());
  return to_host(with_all_rows(model_.mtp()->logits(ctx, batch, hidden)));
}

std::span<const float> ModelRunner::to_host(const StepLogits& logits) {
  if (logits.rows.empty()) {
    // Who gets logits waits for them; the others for the end of the step, so that a failure belongs
    // to it.
    rank_.device().synchronize();
    return {};
  }
  const int64_t vocab = logits.all.dim(1);
  host_logits_.resize(logits.rows.size() * vocab);
  // Rows that lie one after the other come in one copy.
  for (size_t begin = 0, end; begin < logits.rows.size(); begin = end) {
    end = begin + 1;
    while (end < logits.rows.size() && logits.rows[end] == logits.rows[end - 1] + 1) ++end;
    const Tensor piece = logits.all.slice(0, logits.rows[begin], logits.rows[end - 1] + 1);
    rank_.device().copy_to_host(host_logits_.data() + begin * vocab, piece.data, piece.num_bytes());
  }
  return host_logits_;
}

}  // namespace shoal
