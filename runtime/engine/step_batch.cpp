#include "runtime/engine/step_batch.h"

#include <algorithm>

namespace shoal {
namespace {

// Sections begin at 256 bytes, as tensors of their own would.
constexpr size_t kAlignment = 256 / sizeof(int32_t);

int64_t logits_of(const SequenceSlice& s) {
  return s.all_logits ? static_cast<int64_t>(s.tokens.size()) : (s.sample ? 1 : 0);
}

}  // namespace

StepBatch::Section StepBatch::append(const std::vector<int32_t>& values) {
  numbers_.resize((numbers_.size() + kAlignment - 1) / kAlignment * kAlignment, 0);
  const Section section{static_cast<int64_t>(numbers_.size()), static_cast<int64_t>(values.size())};
  numbers_.insert(numbers_.end(), values.begin(), values.end());
  return section;
}

StepBatch::StepBatch(const StepPlan& plan, const ParallelLayout& layout, int32_t page_size,
                     int64_t table_width)
    : page_size_(page_size), table_width_(table_width) {
  batch_.exchange = plan.exchange;
  batch_.tokens_per_rank.assign(layout.size, 0);
  batch_.logits_per_rank.assign(layout.size, 0);
  const auto mine = [&](const SequenceSlice& s) {
    return !layout.dp_attention || s.dp_rank == layout.rank;
  };

  for (const SequenceSlice& s : plan.slices) {
    // A wrong plan is a bug that is named here, and not a place outside the cache that is written to.
    const int64_t end = int64_t{s.first_position} + static_cast<int64_t>(s.tokens.size());
    SHOAL_CHECK(s.dp_rank >= 0 && s.dp_rank < layout.size && s.first_position >= 0 &&
                    end <= static_cast<int64_t>(s.pages.size()) * page_size,
                "request {}: positions [{}, {}) of {} pages, DP rank {} of {}", s.request,
                s.first_position, end, s.pages.size(), s.dp_rank, layout.size);
    batch_.tokens_per_rank[s.dp_rank] += static_cast<int64_t>(s.tokens.size());
    batch_.logits_per_rank[s.dp_rank] += logits_of(s);
    if (mine(s)) table_width_ = std::max(table_width_, static_cast<int64_t>(s.pages.size()));
  }
  std::vector<int32_t> ids, sources, positions, slots, query_start{0}, context_len, block_tables, logits_rows;
  for (const SequenceSlice& s : plan.slices) {
    if (!mine(s)) continue;
    const auto begin = static_cast<int64_t>(ids.size());
    for (size_t i = 0; i < s.tokens.size(); ++i) {
      const int32_t position = s.first_position + static_cast<int32_t>(i);
      ids.push_back(s.tokens[i]);
      sources.push_back(s.from_sample);
      positions.push_back(position);
      slots.push_back(s.pages[position / page_size] * page_size + position % page_size);
    }
    has_sources_ |= s.from_sample >= 0;
    const auto end = static_cast<int64_t>(ids.size());
    query_start.push_back(static_cast<int32_t>(end));
    context_len.push_back(s.first_position + static_cast<int32_t>(s.tokens.size()));
    block_tables.insert(block_tables.end(), s.pages.begin(), s.pages.end());
    block_tables.resize((num_sequences_ + 1) * table_width_, 0);
    if (s.absorbed) {
      SHOAL_CHECK(num_decode_sequences_ == num_sequences_, "absorbed slices come first in a plan");
      ++num_decode_sequences_;
      batch_.num_decode_tokens = end;
    } else {
      batch_.prefills.push_back({begin, end, context_len.back(), num_sequences_});
    }
    for (int64_t row = end - logits_of(s); row < end; ++row) {
      logits_rows.push_back(static_cast<int32_t>(row));
    }
    ++num_sequences_;
  }
  batch_.num_tokens = static_cast<int64_t>(ids.size());
  batch_.query_start = query_start;
  batch_.context_len = context_len;
  token_ids_ = append(ids);
  sources_ = append(sources);
  positions_ = append(positions);
  slots_ = append(slots);
  logits_rows_ = append(logits_rows);
  query_start_ = append(query_start);
  context_len_ = append(context_len);
  block_tables_ = append(block_tables);
}

Tensor StepBatch::sources(const Tensor& memory) const {
  return memory.slice(0, sources_.begin, sources_.begin + sources_.size);
}

ModelBatch StepBatch::on_device(const Tensor& memory) const {
  SHOAL_CHECK(memory.num_elements() >= static_cast<int64_t>(numbers_.size()));
  const auto at = [&](const Section& s) { return memory.slice(0, s.begin, s.begin + s.size); };
  ModelBatch batch = batch_;
  batch.token_ids = at(token_ids_);
  batch.positions = at(positions_);
  batch.slots = at(slots_);
  batch.logits_rows = at(logits_rows_);
  batch.all.page_size = page_size_;
  batch.all.query_start = at(query_start_);
  batch.all.context_len = at(context_len_);
  batch.all.block_tables = at(block_tables_).reshape({num_sequences_, table_width_});
  batch.decode = batch.all;
  batch.decode.query_start = batch.all.query_start.slice(0, 0, num_decode_sequences_ + 1);
  batch.decode.context_len = batch.all.context_len.slice(0, 0, num_decode_sequences_);
  batch.decode.block_tables = batch.all.block_tables.slice(0, 0, num_decode_sequences_);
  return batch;
}

}  // namespace shoal
