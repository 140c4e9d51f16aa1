#include "server/engine_wire.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace shoal {
namespace pb = engine::v1;

// The enumerations have the same values.
static_assert(static_cast<int>(FinishReason::kStop) == pb::FINISH_REASON_STOP);
static_assert(static_cast<int>(FinishReason::kLength) == pb::FINISH_REASON_LENGTH);
static_assert(static_cast<int>(FinishReason::kAbort) == pb::FINISH_REASON_ABORT);
static_assert(static_cast<int>(FinishReason::kError) == pb::FINISH_REASON_ERROR);

pb::Submit to_message(const Request& request) {
  pb::Submit m;
  m.set_id(request.id);
  m.mutable_tokens()->Add(request.tokens.begin(), request.tokens.end());
  m.set_prompt_len(request.prompt_len);
  m.set_priority(request.priority);
  m.set_client(request.client);
  m.set_cache_salt(request.cache_salt);
  const SamplingParams& p = request.sampling;
  pb::SamplingParams& s = *m.mutable_sampling();
  s.set_temperature(p.temperature);
  s.set_top_p(p.top_p);
  s.set_top_k(p.top_k);
  s.set_min_p(p.min_p);
  s.set_repetition_penalty(p.repetition_penalty);
  s.set_presence_penalty(p.presence_penalty);
  s.set_frequency_penalty(p.frequency_penalty);
  s.set_seed(p.seed);
  s.set_max_tokens(p.max_tokens);
  s.set_min_tokens(p.min_tokens);
  s.set_ignore_eos(p.ignore_eos);
  s.mutable_stop_token_ids()->Add(p.stop_token_ids.begin(), p.stop_token_ids.end());
  for (const auto& [id, bias] : p.logit_bias) (*s.mutable_logit_bias())[id] = bias;
  s.set_num_logprobs(p.num_logprobs);
  return m;
}

Request from_message(const pb::Submit& m) {
  Request request;
  request.id = m.id();
  request.tokens.assign(m.tokens().begin(), m.tokens().end());
  request.prompt_len = m.prompt_len();
  request.priority = m.priority();
  request.client = m.client();
  request.cache_salt = m.cache_salt();
  const pb::SamplingParams& s = m.sampling();
  SamplingParams& p = request.sampling;
  p.temperature = s.temperature();
  p.top_p = s.top_p();
  p.top_k = s.top_k();
  p.min_p = s.min_p();
  p.repetition_penalty = s.repetition_penalty();
  p.presence_penalty = s.presence_penalty();
  p.frequency_penalty = s.frequency_penalty();
  p.seed = s.seed();
  p.max_tokens = s.max_tokens();
  p.min_tokens = s.min_tokens();
  p.ignore_eos = s.ignore_eos();
  p.stop_token_ids.assign(s.stop_token_ids().begin(), s.stop_token_ids().end());
  p.logit_bias.assign(s.logit_bias().begin(), s.logit_bias().end());
  std::ranges::sort(p.logit_bias);  // a map's order is not the same in every process
  p.num_logprobs = s.num_logprobs();
  return request;
}

void to_message(const TokenEvent& event, pb::TokenEvent* m) {
  m->set_id(event.id);
  if (event.token) m->set_token(*event.token);
  if (event.logprobs) {
    pb::Logprobs& l = *m->mutable_logprobs();
    l.set_logprob(event.logprobs->logprob);
    for (const auto& [id, logprob] : event.logprobs->top) {
      l.add_top_ids(id);
      l.add_top_logprobs(logprob);
    }
  }
  m->set_finish_reason(static_cast<pb::FinishReason>(event.finish_reason));
  if (event.matched_stop_token) m->set_matched_stop_token(*event.matched_stop_token);
  m->set_cached_tokens(event.cached_tokens);
  m->set_error(event.error);
  if (event.queue_seconds) m->set_queue_seconds(*event.queue_seconds);
}

TokenEvent from_message(const pb::TokenEvent& m) {
  TokenEvent event;
  event.id = m.id();
  if (m.has_token()) event.token = m.token();
  if (m.has_logprobs()) {
    const pb::Logprobs& l = m.logprobs();
    SHOAL_CHECK(l.top_ids_size() == l.top_logprobs_size());
    TokenLogprobs& logprobs = event.logprobs.emplace();
    logprobs.logprob = l.logprob();
    for (int i = 0; i < l.top_ids_size(); ++i) {
      logprobs.top.emplace_back(l.top_ids(i), l.top_logprobs(i));
    }
  }
  SHOAL_CHECK(pb::FinishReason_IsValid(m.finish_reason()));
  event.finish_reason = static_cast<FinishReason>(m.finish_reason());
  if (m.has_matched_stop_token()) event.matched_stop_token = m.matched_stop_token();
  event.cached_tokens = m.cached_tokens();
  event.error = m.error();
  if (m.has_queue_seconds()) event.queue_seconds = m.queue_seconds();
  return event;
}

namespace {

template <size_t N>
void to_message(const BucketCounts<N>& counts, pb::Histogram* m) {
  m->mutable_counts()->Add(counts.counts.begin(), counts.counts.end());
  m->set_sum(counts.sum);
}

template <size_t N>
BucketCounts<N> from_message(const pb::Histogram& m) {
  BucketCounts<N> counts;
  std::copy_n(m.counts().begin(), std::min<size_t>(m.counts_size(), N + 1), counts.counts.begin());
  counts.sum = m.sum();
  return counts;
}

void to_message(const RankStats& stats, pb::RankStats* m) {
  m->set_steps(stats.steps);
  m->set_step_seconds(stats.step_seconds);
  m->set_collective_seconds(stats.collective_seconds);
  m->mutable_bytes_sent()->Add(stats.bytes_sent.begin(), stats.bytes_sent.end());
  m->mutable_memory()->Add(stats.memory.begin(), stats.memory.end());
  m->set_resident_bytes(stats.resident_bytes);
  m->set_expert_rows(stats.expert_rows);
}

RankStats from_message(const pb::RankStats& m) {
  RankStats stats;
  stats.steps = m.steps();
  stats.step_seconds = m.step_seconds();
  stats.collective_seconds = m.collective_seconds();
  std::copy_n(m.bytes_sent().begin(), std::min<size_t>(m.bytes_sent_size(), kNumTraffic),
              stats.bytes_sent.begin());
  std::copy_n(m.memory().begin(), std::min<size_t>(m.memory_size(), kNumMemoryUses),
              stats.memory.begin());
  stats.resident_bytes = m.resident_bytes();
  stats.expert_rows = m.expert_rows();
  return stats;
}

}  // namespace

pb::Stats to_message(const EngineStats& stats) {
  pb::Stats m;
  m.set_running(stats.scheduler.running);
  m.set_waiting(stats.scheduler.waiting);
  m.set_pages_total(stats.scheduler.pages_total);
  m.set_pages_used(stats.scheduler.pages_used);
  m.set_prefix_queries(stats.scheduler.prefix_queries);
  m.set_prefix_hits(stats.scheduler.prefix_hits);
  m.set_preemptions(stats.scheduler.preemptions);
  m.set_pages_swapped_out(stats.scheduler.tiers.swapped_out);
  m.set_pages_swapped_in(stats.scheduler.tiers.swapped_in);
  m.set_pages_spilled(stats.scheduler.tiers.spilled);
  m.set_pages_restored(stats.scheduler.tiers.restored);
  m.set_pages_saved(stats.scheduler.tiers.saved);
  m.set_pages_loaded(stats.scheduler.tiers.loaded);
  m.set_experts_on_device(stats.offload.experts_on_device);
  m.set_experts_on_host(stats.offload.experts_on_host);
  m.set_experts_on_disk(stats.offload.experts_on_disk);
  m.set_expert_bytes_streamed(stats.offload.bytes_streamed);
  m.set_expert_bytes_by_cpu(stats.offload.bytes_read_by_cpu);
  m.set_expert_bytes_from_disk(stats.offload.bytes_from_disk);
  m.set_expert_moves(stats.offload.moves);
  m.set_steps(stats.steps);
  m.set_prompt_tokens(stats.prompt_tokens);
  m.set_generated_tokens(stats.generated_tokens);
  to_message(stats.step_tokens, m.mutable_step_tokens());
  to_message(stats.step_seconds, m.mutable_step_seconds());
  m.set_last_step_seconds(stats.last_step_seconds);
  m.set_prompt_token_seconds(stats.prompt_token_seconds);
  m.set_decode_step_seconds(stats.decode_step_seconds);
  for (const RankStats& rank : stats.ranks) to_message(rank, m.add_ranks());
  pb::ExpertBalance& e = *m.mutable_experts();
  e.set_mean_imbalance(stats.experts.mean_imbalance);
  e.set_worst_imbalance(stats.experts.worst_imbalance);
  e.set_worst_layer(stats.experts.worst_layer);
  e.set_rank_imbalance(stats.experts.rank_imbalance);
  e.set_idle_experts(stats.experts.idle_experts);
  return m;
}

void update(EngineStatus& status, const pb::Stats& m) {
  status.running = m.running();
  status.waiting = m.waiting();
  status.pages_total = m.pages_total();
  status.pages_used = m.pages_used();
  status.prefix_queries = m.prefix_queries();
  status.prefix_hits = m.prefix_hits();
  status.preemptions = m.preemptions();
  status.tiers = {.swapped_out = m.pages_swapped_out(),
                  .swapped_in = m.pages_swapped_in(),
                  .spilled = m.pages_spilled(),
                  .restored = m.pages_restored(),
                  .saved = m.pages_saved(),
                  .loaded = m.pages_loaded()};
  status.offload = {.experts_on_device = m.experts_on_device(),
                    .experts_on_host = m.experts_on_host(),
                    .experts_on_disk = m.experts_on_disk(),
                    .bytes_streamed = m.expert_bytes_streamed(),
                    .bytes_read_by_cpu = m.expert_bytes_by_cpu(),
                    .bytes_from_disk = m.expert_bytes_from_disk(),
                    .moves = m.expert_moves()};
  status.steps = m.steps();
  status.prompt_tokens = m.prompt_tokens();
  status.generated_tokens = m.generated_tokens();
  status.step_tokens = from_message<kStepTokenBounds.size()>(m.step_tokens());
  status.step_seconds = from_message<kStepSecondsBounds.size()>(m.step_seconds());
  status.last_step_seconds = m.last_step_seconds();
  status.prompt_token_seconds = m.prompt_token_seconds();
  status.decode_step_seconds = m.decode_step_seconds();
  status.rank_stats.clear();
  for (const pb::RankStats& rank : m.ranks()) {
    const RankStats& stats = status.rank_stats.emplace_back(from_message(rank));
    if (status.rank_stats.size() > status.memory.size()) continue;
    std::vector<MemoryTaken>& uses = status.memory[status.rank_stats.size() - 1];
    for (size_t use = 0; use < std::min(uses.size(), stats.memory.size()); ++use) {
      uses[use].taken = stats.memory[use];
    }
  }
  status.experts = {.mean_imbalance = m.experts().mean_imbalance(),
                    .worst_imbalance = m.experts().worst_imbalance(),
                    .worst_layer = m.experts().worst_layer(),
                    .rank_imbalance = m.experts().rank_imbalance(),
                    .idle_experts = m.experts().idle_experts()};
}

void update(EngineStatus& status, const pb::Ready& m) {
  status.world_size = m.world_size();
  status.max_model_len = m.max_model_len();
  status.kv_tokens = m.kv_tokens();
  status.weight_bytes = m.weight_bytes();
  status.kv_cache_bytes = m.kv_cache_bytes();
  status.load_seconds = m.load_seconds();
  status.ranks.assign(m.ranks().begin(), m.ranks().end());
  status.memory.clear();
  for (const pb::RankMemory& rank : m.memory()) {
    std::vector<MemoryTaken>& uses = status.memory.emplace_back();
    for (const pb::MemoryUse& use : rank.uses()) uses.push_back({use.name(), use.planned(), use.taken()});
  }
}

}  // namespace shoal
