#include "runtime/engine/model_runner.h"

#include <algorithm>

#include "runtime/model/mtp.h"

namespace shoal {

ModelRunner::ModelRunner(RankRuntime& rank, Model& model, const ParallelLayout& layout,
                         DType kv_dtype, int32_t page_size, int32_t num_pages)
    : rank_(rank), model_(model), layout_(layout), page_size_(page_size), num_pages_(num_pages) {
  const auto [k_row, v_row] = model.cache_row();
  const int64_t layers = model.config().num_hidden_layers + (model.mtp() != nullptr ? 1 : 0);
  const int64_t slots = int64_t{num_pages} * page_size;
  const int64_t row_bytes = (k_row + v_row) * dtype_size(kv_dtype);
  kv_cache_bytes_ = layers * slots * row_bytes;
  kv_memory_ = rank.device().allocate(std::max<int64_t>(kv_cache_bytes_, 1));
  kv_cache_.page_size = page_size;
  auto* next = static_cast<std::byte*>(kv_memory_.data());
  for (int64_t i = 0; i < layers; ++i) {
    KvCache::Layer layer;
    layer.k = Tensor(next, kv_dtype, {slots, k_row});
    next += layer.k.num_bytes();
    if (v_row > 0) {
      layer.v = Tensor(next, kv_dtype, {slots, v_row});
      next += layer.v.num_bytes();
    }
    kv_cache_.layers.push_back(layer);
  }
}

ModelBatch ModelRunner::make_batch(const StepPlan& plan) {
  ModelBatch batch;
  batch.exchange = plan.exchange;
  batch.tokens_per_rank.assign(layout_.size, 0);
  batch.logits_per_rank.assign(layout_.size, 0);
  const auto mine = [&](const SequenceSlice& s) {
    return !layout_.dp_attention || s.dp_rank == layout_.rank;
  };
  const auto logits_of = [](const SequenceSlice& s) -> int64_t {
    return s.all_logits ? static_cast<int64_t>(s.tokens.size()) : (s.sample ? 1 : 0);
  };

  std::vector<int32_t> ids, positions, slots, query_start{0}, context_len, block_tables, logits_rows;
  size_t max_pages = 1;
  int64_t sequences = 0, decode_sequences = 0;
  for (const SequenceSlice& s : plan.slices) {
    batch.tokens_per_rank[s.dp_rank] += static_cast<int64_t>(s.tokens.size());
    batch.logits_per_rank[s.dp_rank] += logits_of(s);
    if (mine(s)) max_pages = std::max(max_pages, s.pages.size());
  }
  for (const SequenceSlice& s : plan.slices) {
    if (!mine(s)) continue;
    const auto begin = static_cast<int64_t>(ids.size());
    for (size_t i = 0; i < s.tokens.size(); ++i) {
      const int32_t position = s.first_position + static_cast<int32_t>(i);
      ids.push_back(s.tokens[i]);
      positions.push_back(position);
      slots.push_back(s.pages[position / page_size_] * page_size_ + position % page_size_);
    }
    const auto end = static_cast<int64_t>(ids.size());
    query_start.push_back(static_cast<int32_t>(end));
    context_len.push_back(s.first_position + static_cast<int32_t>(s.tokens.size()));
    block_tables.insert(block_tables.end(), s.pages.begin(), s.pages.end());
    block_tables.resize((sequences + 1) * max_pages, 0);
    if (s.absorbed) {
      SHOAL_CHECK(decode_sequences == sequences, "absorbed slices come first in a plan");
      ++decode_sequences;
      batch.num_decode_tokens = end;
    } else {
      batch.prefills.push_back({begin, end, context_len.back(), sequences});
    }
    for (int64_t row = end - logits_of(s); row < end; ++row) {
      logits_rows.push_back(static_cast<int32_t>(row));
    }
    ++sequences;
  }

  Workspace& ws = rank_.workspace();
  const auto upload = [&](const std::vector<int32_t>& v) {
    return ws.from_host(DType::kI32, v.data(), {static_cast<int64_t>(v.size())});
  };
  batch.num_tokens = static_cast<int64_t>(ids.size());
  batch.token_ids = upload(ids);
  batch.positions = upload(positions);
  batch.slots = upload(slots);
  batch.logits_rows = upload(logits_rows);
  batch.all.page_size = page_size_;
  batch.all.query_start = upload(query_start);
  batch.all.context_len = upload(context_len);
  batch.all.block_tables =
      upload(block_tables).reshape({sequences, static_cast<int64_t>(max_pages)});
  batch.decode = batch.all;
  batch.decode.query_start = batch.all.query_start.slice(0, 0, decode_sequences + 1);
  batch.decode.context_len = batch.all.context_len.slice(0, 0, decode_sequences);
  batch.decode.block_tables = batch.all.block_tables.slice(0, 0, decode_sequences);
  return batch;
}

std::span<const float> ModelRunner::run(const StepPlan& plan) {
  rank_.workspace().reset();
  ExecContext ctx = rank_.exec();
  const ModelBatch batch = make_batch(plan);
  hidden_ = model_.forward(ctx, batch, kv_cache_);
  return to_host(model_.logits(ctx, batch, hidden_));
}

std::span<const float> ModelRunner::run_mtp(const StepPlan& plan) {
  SHOAL_CHECK(model_.mtp() != nullptr, "the multi-token-prediction layer is not loaded");
  ExecContext ctx = rank_.exec();  // hidden_ is in the workspace: not reset
  const ModelBatch batch = make_batch(plan);
  const Tensor hidden = model_.mtp()->forward(ctx, batch, hidden_.slice(0, 0, batch.num_tokens),
                                              kv_cache_.layers.back());
  return to_host(model_.mtp()->logits(ctx, batch, hidden));
}

std::span<const float> ModelRunner::to_host(const Tensor& logits) {
  if (rank_.rank() != 0) return {};
  logits_.resize(logits.num_elements());
  if (!logits_.empty()) {
    rank_.device().copy_to_host(logits_.data(), logits.data, logits.num_bytes());
  }
  return logits_;
}

}  // namespace shoal
