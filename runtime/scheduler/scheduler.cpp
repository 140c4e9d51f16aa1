#include "runtime/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "runtime/scheduler/scheduler_state.h"

namespace shoal {

void Scheduler::State::run_slice(Sequence& seq, int32_t& budget) {
  const int32_t end = seq.in_prompt() ? seq.request.prompt_len : seq.length();
  const int32_t count = std::min(budget, end - seq.planned);
  if (count <= 0) return;
  budget -= count;
  queue.charge(seq, std::max(0, seq.planned + count - std::max(seq.planned, seq.charged)));
  seq.charged = std::max(seq.charged, seq.planned + count);
  SequenceSlice slice;
  slice.request = seq.request.id;
  slice.dp_rank = seq.pool;
  slice.first_position = seq.planned;
  if (seq.pending > 0) {
    // All known tokens are planned, and the one that is not known comes from the step that runs.
    SHOAL_CHECK(
        seq.pending == 1 && count == 1 && seq.planned == seq.known() && seq.sampled_by == steps,
        "request {}: {} pending of step {}", seq.request.id, seq.pending, seq.sampled_by);
    slice.tokens = {0};
    slice.from_sample = seq.sample;
  } else {
    const auto first = seq.request.tokens.begin() + seq.planned;
    slice.tokens.assign(first, first + count);
  }
  slice.pages.assign(seq.pages.begin(), seq.pages.begin() + pages_for(seq.planned + count));
  slice.absorbed = !seq.in_prompt();
  slice.sample = seq.planned + count == seq.length();
  slices.push_back(std::move(slice));
}

// With the tokens that are pending, if there are any.
bool Scheduler::State::at_full_length(const Sequence& seq) const {
  return seq.length() - seq.request.prompt_len >= seq.request.sampling.max_tokens ||
         seq.length() >= config.max_model_len;
}

// From here on the plan's KV counts as computed: whoever uses it comes in a later step.
void Scheduler::State::commit(const StepPlan& plan) {
  int32_t samples = 0;
  for (const SequenceSlice& slice : plan.slices) {
    Sequence& seq = get(slice.request);
    seq.planned += static_cast<int32_t>(slice.tokens.size());
    if (!slice.absorbed && config.enable_prefix_caching) {
      pools[seq.pool]->prefix_cache.insert(
          seq.request.cache_salt, std::span<const int32_t>(seq.request.tokens).first(static_cast<size_t>(seq.planned)),
          seq.pages, seq.cursor);
      offer_pages(seq);
    }
    if (!slice.sample) continue;
    seq.sampled_by = plan.number;
    seq.sample = samples++;
    ++seq.pending;
    if (!at_full_length(seq)) continue;
    stop_running(seq);
    ending.insert(&seq);
  }
}

FinishReason Scheduler::State::finish_reason(const Sequence& seq, TokenEvent& event) const {
  const SamplingParams& params = seq.request.sampling;
  const int32_t token = *event.token;
  const bool ends =
      (!params.ignore_eos && std::ranges::binary_search(config.eos_token_ids, token)) ||
      std::ranges::find(params.stop_token_ids, token) != params.stop_token_ids.end();
  if (ends && seq.known() - seq.request.prompt_len > params.min_tokens) {
    event.matched_stop_token = token;
    return FinishReason::kStop;
  }
  return seq.pending == 0 && at_full_length(seq) ? FinishReason::kLength : FinishReason::kNone;
}

Scheduler::Scheduler(SchedulerConfig config) : state_(std::make_unique<State>(std::move(config))) {}
Scheduler::~Scheduler() = default;

void Scheduler::add(Request request) {
  State& s = *state_;
  const auto length = static_cast<int64_t>(request.tokens.size());
  if (request.prompt_len < 1 || request.prompt_len > length) {
    throw_invalid("prompt of {} tokens: must be at least 1, and at most the {} tokens given",
                  request.prompt_len, length);
  }
  if (length >= s.config.max_model_len) {
    throw_invalid("{} tokens: the context holds {} tokens, at least one of them output", length,
                  s.config.max_model_len);
  }
  if (length - request.prompt_len >= request.sampling.max_tokens) {
    throw_invalid("max_tokens {}: must be more than the {} tokens already emitted",
                  request.sampling.max_tokens, length - request.prompt_len);
  }
  auto seq = std::make_unique<State::Sequence>();
  seq->request = std::move(request);
  seq->priority = seq->request.priority;
  seq->client = seq->request.client;
  seq->arrival = s.arrivals++;
  if (s.keep_prompts) {
    seq->keys = page_keys(
        seq->request.cache_salt,
        std::span<const int32_t>(seq->request.tokens).first(seq->request.prompt_len),
        s.config.page_size);
  }
  const auto [it, fresh] = s.sequences.try_emplace(seq->request.id, std::move(seq));
  SHOAL_CHECK(fresh, "request id {} is in use", it->first);
  s.queue.add(*it->second);
  if (s.blocked != nullptr && it->second->priority < s.blocked->priority) s.blocked = nullptr;
}

bool Scheduler::cancel(RequestId id) {
  const auto it = state_->sequences.find(id);
  if (it == state_->sequences.end()) return false;
  state_->remove(*it->second);
  return true;
}

bool Scheduler::has_work() const {
  return !state_->sequences.empty() || !state_->loads.empty() || !state_->work.empty() ||
         std::ranges::any_of(state_->pools,
                             [](const auto& pool) { return pool->tiers.has_work(); });
}

uint64_t Scheduler::loading() const {
  return state_->loads.empty() ? 0 : state_->loads.front().ticket;
}

void Scheduler::loaded(uint64_t ticket, int64_t count) {
  State& s = *state_;
  SHOAL_CHECK(ticket != 0 && ticket == loading(), "ticket {}, {} is loading", ticket, loading());
  const PoolTiers::Load load = std::move(s.loads.front());
  s.loads.pop_front();
  SHOAL_CHECK(count >= 0 && count <= static_cast<int64_t>(load.pages.size()), "{} pages", count);
  s.pools[load.pool]->tiers.loaded(load, count, s.work, s.tier_stats);
  for (const auto& [id, seq] : s.sequences) {
    if (seq->loading == ticket) seq->loading = 0;
  }
}

void Scheduler::set_costs(double page_copy_seconds, double token_seconds) {
  state_->config.tiers.page_copy_seconds = page_copy_seconds;
  state_->config.tiers.token_seconds = token_seconds;
}

std::optional<StepPlan> Scheduler::plan() {
  State& s = *state_;
  SHOAL_CHECK(s.steps - s.applied <= 1, "plan() with two plans not applied");
  if (!has_work()) return std::nullopt;
  int32_t budget = s.config.max_num_batched_tokens;
  s.work.budget = s.config.tiers.copies_per_step;
  for (const auto& pool : s.pools) {
    pool->tiers.spill(pool->prefix_cache, s.work, s.tier_stats);
  }
  s.work.budget = s.config.tiers.copies_per_step;
  const int64_t preemptions_before = s.preemptions;
  bool short_of_pages = false;
  for (auto it = s.running.begin(); it != s.running.end(); ++it) {
    if (!(*it)->decoding()) continue;
    // Preempts only what ranks after it, so neither `it` nor a slice made here goes away.
    if (s.make_room(**it)) {
      s.run_slice(**it, budget);
    } else {
      short_of_pages = true;
    }
  }
  for (State::Sequence* seq : s.running) {
    if (seq->decoding()) continue;
    if (seq->restoring()) s.restore(*seq);
    if (!seq->restoring()) s.run_slice(*seq, budget);
  }
  if (!short_of_pages && s.preemptions == preemptions_before) s.admit_waiting(budget);

  StepPlan plan;
  plan.slices = std::exchange(s.slices, {});
  plan.copies = std::exchange(s.work.copies, {});
  plan.files = std::exchange(s.work.files, {});
  if (plan.slices.empty()) {
    if (!plan.copies.empty() || !plan.files.empty()) {
      plan.kind = StepKind::kPages;
      plan.number = s.steps;
      return plan;
    }
    SHOAL_CHECK(s.steps > s.applied || !s.loads.empty() || s.sequences.empty(),
                "nothing to run: {} running, {} waiting", s.running.size(), s.queue.waiting());
    return std::nullopt;
  }
  plan.number = ++s.steps;
  std::ranges::stable_sort(plan.slices, {}, [](const SequenceSlice& slice) {
    return std::pair(slice.dp_rank, !slice.absorbed);
  });
  s.commit(plan);
  return plan;
}

std::vector<TokenEvent> Scheduler::apply(const StepPlan& plan,
                                         const std::vector<Sampled>& sampled) {
  State& s = *state_;
  SHOAL_CHECK(s.applied < s.steps && plan.number == s.applied + 1,
              "apply() of plan {}; {} are applied, {} made", plan.number, s.applied, s.steps);
  ++s.applied;
  std::vector<TokenEvent> events;
  size_t next = 0;
  for (const SequenceSlice& slice : plan.slices) {
    if (!slice.sample) continue;
    SHOAL_CHECK(next < sampled.size(), "{} tokens sampled, more wanted", sampled.size());
    const Sampled& choice = sampled[next++];
    if (!awaits(slice.request, plan.number)) continue;
    State::Sequence& seq = s.get(slice.request);
    --seq.pending;
    seq.request.tokens.push_back(choice.token);
    TokenEvent event;
    event.id = seq.request.id;
    event.token = choice.token;
    event.logprobs = choice.logprobs;
    event.cached_tokens = seq.cached_tokens.value_or(0);
    event.finish_reason = s.finish_reason(seq, event);
    events.push_back(std::move(event));
    if (events.back().finish_reason != FinishReason::kNone) s.remove(seq);
  }
  SHOAL_CHECK(next == sampled.size(), "{} tokens sampled, {} wanted", sampled.size(), next);
  return events;
}

bool Scheduler::awaits(RequestId id, uint64_t step) const {
  const auto it = state_->sequences.find(id);
  return it != state_->sequences.end() && it->second->awaits(step);
}

std::span<const int32_t> Scheduler::tokens(RequestId id) const {
  return state_->get(id).request.tokens;
}

const Request& Scheduler::request(RequestId id) const { return state_->get(id).request; }

std::vector<RequestId> Scheduler::ids() const {
  std::vector<RequestId> ids;
  for (const auto& [id, seq] : state_->sequences) ids.push_back(id);
  std::ranges::sort(ids);
  return ids;
}

SchedulerStats Scheduler::stats() const {
  const State& s = *state_;
  SchedulerStats stats;
  stats.running = static_cast<int64_t>(s.running.size() + s.ending.size());
  stats.waiting = s.queue.waiting();
  for (const auto& pool : s.pools) {
    stats.pages_total += pool->allocator.num_pages();
    stats.pages_used += pool->allocator.num_pages() - pool->allocator.num_free();
  }
  stats.prefix_queries = s.prefix_queries;
  stats.prefix_hits = s.prefix_hits;
  stats.preemptions = s.preemptions;
  stats.tiers = s.tier_stats;
  return stats;
}

}  // namespace shoal
