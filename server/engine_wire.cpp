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
  return event;
}

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
}

void update(EngineStatus& status, const pb::Ready& m) {
  status.world_size = m.world_size();
  status.max_model_len = m.max_model_len();
  status.kv_tokens = m.kv_tokens();
  status.weight_bytes = m.weight_bytes();
  status.kv_cache_bytes = m.kv_cache_bytes();
  status.load_seconds = m.load_seconds();
  status.ranks.assign(m.ranks().begin(), m.ranks().end());
}

}  // namespace shoal
