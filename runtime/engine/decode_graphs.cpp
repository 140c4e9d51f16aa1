#include "runtime/engine/decode_graphs.h"

#include <algorithm>

namespace shoal {

std::vector<int64_t> decode_buckets(int64_t max_num_seqs) {
  constexpr int64_t kLargest = 256;
  std::vector<int64_t> buckets;
  for (int64_t next = 1; next < std::min(max_num_seqs, kLargest);
       next += next < 8 ? next : (next < 64 ? 8 : 16)) {
    buckets.push_back(next);
  }
  buckets.push_back(std::min(max_num_seqs, kLargest));
  return buckets;
}

DecodeGraphs::DecodeGraphs(RankRuntime& rank, const Model& model, const ParallelLayout& layout,
                           const KvCache& cache, int32_t num_pages, int64_t max_model_len,
                           DType dtype)
    : rank_(rank),
      model_(model),
      layout_(layout),
      cache_(cache),
      padding_page_(num_pages),
      table_width_((max_model_len + cache.page_size - 1) / cache.page_size),
      dtype_(dtype) {}

std::vector<int64_t> DecodeGraphs::sequences_per_rank(const StepPlan& plan) const {
  std::vector<int64_t> counts(layout_.dp_attention ? layout_.size : 1, 0);
  for (const SequenceSlice& s : plan.slices) ++counts[s.dp_rank];
  return counts;
}

StepPlan DecodeGraphs::padded(const StepPlan& plan, int64_t bucket) const {
  SequenceSlice padding;
  padding.tokens = {0};
  padding.pages = {padding_page_};
  padding.absorbed = padding.sample = true;
  StepPlan result;
  result.number = plan.number;
  auto next = plan.slices.begin();
  const std::vector<int64_t> counts = sequences_per_rank(plan);
  for (size_t r = 0; r < counts.size(); ++r) {
    result.slices.insert(result.slices.end(), next, next + counts[r]);
    next += counts[r];
    padding.dp_rank = static_cast<int32_t>(r);
    result.slices.insert(result.slices.end(), bucket - counts[r], padding);
  }
  return result;
}

DecodeGraphs::Recorded DecodeGraphs::record_bucket(int64_t bucket) {
  const StepBatch host(padded({}, bucket), layout_, cache_.page_size, table_width_);
  const auto size = static_cast<int64_t>(host.numbers().size());
  Recorded recorded;
  recorded.inputs = Tensor(inputs_.data(), DType::kI32, {size});
  rank_.device().copy_to_device(inputs_.data(), host.numbers().data(), size * sizeof(int32_t));
  const ModelBatch batch = host.on_device(recorded.inputs);
  ExecContext ctx = rank_.exec(dtype_);
  const auto step = [&] {
    rank_.workspace().reset();
    ctx.ops.begin_step();
    const Tensor hidden = model_.forward(ctx, batch, cache_);
    ctx.ops.end_step();
    recorded.logits = model_.logits(ctx, batch, hidden);
  };
  // Once for real: what is made at first use (plans, tables, scratch, workspace) cannot be made while
  // the step is recorded.
  step();
  recorded.graph = rank_.device().capture(step);
  return recorded;
}

bool DecodeGraphs::record(int64_t max_num_seqs, const std::function<void(int, int)>& progress) {
  if (rank_.device().capture([] {}) == nullptr) return false;
  std::vector<int64_t> buckets = decode_buckets(max_num_seqs);
  // The largest first: the workspace then has its final size before anything is recorded in it.
  std::reverse(buckets.begin(), buckets.end());
  const StepBatch largest(padded({}, buckets.front()), layout_, cache_.page_size, table_width_);
  const MemoryScope scope(rank_.device(), MemoryUse::kGraphs);
  inputs_ = rank_.device().allocate(largest.numbers().size() * sizeof(int32_t));
  for (size_t i = 0; i < buckets.size(); ++i) {
    graphs_[buckets[i]] = record_bucket(buckets[i]);
    if (progress) progress(static_cast<int>(i) + 1, static_cast<int>(buckets.size()));
  }
  rank_.device().synchronize();
  return true;
}

bool DecodeGraphs::can_run(const StepPlan& plan) const {
  if (graphs_.empty() || plan.exchange != ExpertExchange::kReplicated) return false;
  const std::vector<int64_t> counts = sequences_per_rank(plan);
  return *std::max_element(counts.begin(), counts.end()) <= graphs_.rbegin()->first &&
         std::all_of(plan.slices.begin(), plan.slices.end(), [&](const SequenceSlice& s) {
           return s.absorbed && s.sample && s.tokens.size() == 1 &&
                  static_cast<int64_t>(s.pages.size()) <= table_width_;
         });
}

StepLogits DecodeGraphs::run(const StepPlan& plan, const Feed& feed) {
  const std::vector<int64_t> counts = sequences_per_rank(plan);
  const auto& [bucket, recorded] =
      *graphs_.lower_bound(*std::max_element(counts.begin(), counts.end()));
  const StepBatch host(padded(plan, bucket), layout_, cache_.page_size, table_width_);
  SHOAL_CHECK(static_cast<int64_t>(host.numbers().size()) == recorded.inputs.num_elements());
  rank_.device().copy_to_device(recorded.inputs.data, host.numbers().data(),
                                recorded.inputs.num_bytes());
  feed(host, recorded.inputs);
  recorded.graph->launch();
  StepLogits logits;
  if (rank_.rank() != 0) return logits;
  logits.all = recorded.logits;
  for (size_t r = 0; r < counts.size(); ++r) {
    for (int64_t i = 0; i < counts[r]; ++i) {
      logits.rows.push_back(static_cast<int64_t>(r) * bucket + i);
    }
  }
  return logits;
}

}  // namespace shoal
