#include "runtime/scheduler/scheduler.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "kernels/base/error.h"
#include "runtime/cache/block_allocator.h"
#include "runtime/cache/prefix_cache.h"

namespace shoal {
namespace {

// The KV of positions [0, planned) is in `pages`, once the steps planned so far have run.
struct Sequence {
  Request request;
  uint64_t arrival = 0;
  int32_t pool = 0;
  int32_t planned = 0;
  // Tokens that steps planned and not applied will add: one each of the steps (sampled_by - pending,
  // sampled_by], which follow each other because a slice that feeds on a sample is in the step after.
  int32_t pending = 0;
  uint64_t sampled_by = 0;
  int32_t sample = 0;  // which of sampled_by's samples
  std::vector<int32_t> pages;
  PrefixCache::Cursor cursor;            // of the prompt's pages in the pool's prefix cache
  std::optional<int32_t> cached_tokens;  // of the first admission: what the client is told

  int32_t known() const { return static_cast<int32_t>(request.tokens.size()); }
  int32_t length() const { return known() + pending; }
  bool in_prompt() const { return planned < request.prompt_len; }
  bool decoding() const { return !in_prompt() && length() - planned == 1; }
  bool awaits(uint64_t step) const { return step <= sampled_by && step + pending > sampled_by; }
};

struct ByRank {
  bool operator()(const Sequence* a, const Sequence* b) const {
    return std::tie(a->request.priority, a->arrival) < std::tie(b->request.priority, b->arrival);
  }
};

struct Pool {
  Pool(const SchedulerConfig& config)
      : allocator(config.num_pages), prefix_cache(allocator, config.page_size) {}
  BlockAllocator allocator;
  PrefixCache prefix_cache;
  int32_t running = 0;
};

}  // namespace

struct Scheduler::State {
  explicit State(SchedulerConfig c) : config(std::move(c)) {
    SHOAL_CHECK(config.max_num_seqs > 0 && config.max_num_batched_tokens > 0 &&
                config.max_model_len > 1 && config.page_size > 0 && config.num_pages > 0 &&
                config.num_pools > 0);
    const int64_t pool_tokens = int64_t{config.num_pages} * config.page_size;
    if (config.max_model_len > pool_tokens) config.max_model_len = static_cast<int32_t>(pool_tokens);
    // Every running sequence gets at least one token in every step.
    config.max_num_seqs = std::min(config.max_num_seqs, config.max_num_batched_tokens);
    std::ranges::sort(config.eos_token_ids);
    for (int32_t i = 0; i < config.num_pools; ++i) pools.push_back(std::make_unique<Pool>(config));
  }

  int32_t pages_for(int32_t tokens) const {
    return tokens / config.page_size + (tokens % config.page_size != 0 ? 1 : 0);
  }
  Sequence& get(RequestId id) const {
    const auto it = sequences.find(id);
    SHOAL_CHECK(it != sequences.end(), "no request {}", id);
    return *it->second;
  }

  void release_pages(Sequence& seq);
  void stop_running(Sequence& seq);
  void remove(Sequence& seq);
  void preempt(Sequence& seq);
  bool make_room(Sequence& seq);
  void run_slice(Sequence& seq, int32_t& budget);
  struct Placement {
    int32_t pool = 0;
    PrefixCache::Match match;
  };
  std::optional<Placement> place(const Sequence& seq) const;
  bool being_computed(const Sequence& seq, const Placement& placement) const;
  void admit(Sequence& seq, Placement placement);
  void admit_waiting(int32_t& budget);
  bool at_full_length(const Sequence& seq) const;
  void commit(const StepPlan& plan);
  FinishReason finish_reason(const Sequence& seq, TokenEvent& event) const;

  SchedulerConfig config;
  std::vector<std::unique_ptr<Pool>> pools;
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences;
  // `ending` have been given all their slices and only await their last token: they hold no pages.
  std::set<Sequence*, ByRank> running, waiting, ending;
  uint64_t arrivals = 0;
  uint64_t steps = 0, applied = 0;
  // The first waiting request found no pages; nothing has been freed since.
  bool admission_blocked = false;
  std::vector<SequenceSlice> slices;  // of the plan being made
  int64_t prefix_queries = 0, prefix_hits = 0, preemptions = 0;
};

// Last pages first: a page is reused before the pages that lead to it, which more prompts share.
void Scheduler::State::release_pages(Sequence& seq) {
  BlockAllocator& allocator = pools[seq.pool]->allocator;
  for (auto page = seq.pages.rbegin(); page != seq.pages.rend(); ++page) allocator.release(*page);
  seq.pages.clear();
  seq.cursor = {};
  seq.planned = 0;
  admission_blocked = false;
}

// A step that runs may still read and write the pages: whoever gets them next comes in a later one.
void Scheduler::State::stop_running(Sequence& seq) {
  running.erase(&seq);
  --pools[seq.pool]->running;
  release_pages(seq);
}

void Scheduler::State::remove(Sequence& seq) {
  if (running.contains(&seq)) {
    stop_running(seq);
  } else if (ending.erase(&seq) == 0) {
    if (&seq == *waiting.begin()) admission_blocked = false;
    waiting.erase(&seq);
  }
  sequences.erase(seq.request.id);  // ends seq
}

void Scheduler::State::preempt(Sequence& seq) {
  stop_running(seq);
  waiting.insert(&seq);
  ++preemptions;
}

// Gives a decoding sequence the page of its next token; false when only sequences that rank before
// it hold pages.
bool Scheduler::State::make_room(Sequence& seq) {
  const int32_t wanted = pages_for(seq.planned + 1);
  if (static_cast<int32_t>(seq.pages.size()) >= wanted) return true;
  BlockAllocator& allocator = pools[seq.pool]->allocator;
  while (allocator.num_free() == 0) {
    const auto victim = std::find_if(running.rbegin(), running.rend(),
                                     [&](const Sequence* s) { return s->pool == seq.pool; });
    if (*victim == &seq) return false;
    preempt(**victim);
  }
  seq.pages.push_back(allocator.allocate());
  return true;
}

void Scheduler::State::run_slice(Sequence& seq, int32_t& budget) {
  const int32_t end = seq.in_prompt() ? seq.request.prompt_len : seq.length();
  const int32_t count = std::min(budget, end - seq.planned);
  if (count <= 0) return;
  budget -= count;
  SequenceSlice slice;
  slice.request = seq.request.id;
  slice.dp_rank = seq.pool;
  slice.first_position = seq.planned;
  if (seq.pending > 0) {
    // All known tokens are planned, and the one that is not known comes from the step that runs.
    SHOAL_CHECK(seq.pending == 1 && count == 1 && seq.planned == seq.known() &&
                    seq.sampled_by == steps,
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

// The pool with the longest known prefix, else the most free pages, among those with room.
std::optional<Scheduler::State::Placement> Scheduler::State::place(const Sequence& seq) const {
  // All of a replayed or preempted request's prompt may be known; a new one must run its last token.
  const auto known = std::span<const int32_t>(seq.request.tokens)
                         .first(std::min(seq.length(), seq.request.prompt_len + 1));
  std::optional<Placement> best;
  int32_t best_free = 0;
  for (int32_t i = 0; i < config.num_pools; ++i) {
    const Pool& pool = *pools[i];
    PrefixCache::Match match;
    if (config.enable_prefix_caching) match = pool.prefix_cache.find(known);
    const auto revived = std::ranges::count_if(
        match.pages, [&](int32_t page) { return pool.allocator.references(page) == 0; });
    const int32_t fresh = pages_for(seq.length()) - match.cursor.num_pages;
    // One page for each running sequence to grow by, so that it need not preempt this one at once.
    const int32_t free = pool.allocator.num_free() - static_cast<int32_t>(revived);
    if (free < fresh + pool.running) continue;
    if (!best || std::pair(match.cursor.num_pages, free) >
                     std::pair(best->match.cursor.num_pages, best_free)) {
      best = Placement{i, std::move(match)};
      best_free = free;
    }
  }
  return best;
}

// Whether a running prompt will soon hold the page that comes after those already found.
bool Scheduler::State::being_computed(const Sequence& seq, const Placement& placement) const {
  if (!config.enable_prefix_caching) return false;
  const auto shared = static_cast<int64_t>(placement.match.cursor.num_pages + 1) * config.page_size;
  const auto& mine = seq.request.tokens;
  if (shared > std::min(seq.length() - 1, seq.request.prompt_len)) return false;
  return std::ranges::any_of(running, [&](const Sequence* other) {
    return other->in_prompt() && other->pool == placement.pool &&
           shared <= other->request.prompt_len &&
           std::equal(mine.begin(), mine.begin() + shared, other->request.tokens.begin());
  });
}

void Scheduler::State::admit(Sequence& seq, Placement placement) {
  Pool& pool = *pools[placement.pool];
  seq.pool = placement.pool;
  for (int32_t page : placement.match.pages) pool.allocator.acquire(page);
  seq.pages = std::move(placement.match.pages);
  seq.cursor = placement.match.cursor;
  seq.planned = seq.cursor.num_pages * config.page_size;
  const int32_t wanted = pages_for(seq.length());
  while (static_cast<int32_t>(seq.pages.size()) < wanted) {
    seq.pages.push_back(pool.allocator.allocate());
  }
  if (!seq.cached_tokens) {
    seq.cached_tokens = seq.planned;
    prefix_queries += seq.request.prompt_len;
    prefix_hits += seq.planned;
  }
  ++pool.running;
  waiting.erase(&seq);
  running.insert(&seq);
}

void Scheduler::State::admit_waiting(int32_t& budget) {
  while (budget > 0 && !waiting.empty() && !admission_blocked &&
         static_cast<int32_t>(running.size()) < config.max_num_seqs) {
    Sequence& seq = **waiting.begin();
    // Preempted while its step runs: only for plans that preempt, which admit nobody.
    SHOAL_CHECK(seq.pending == 0, "request {} waits with a token pending", seq.request.id);
    std::optional<Placement> placement = place(seq);
    if (!placement) {
      admission_blocked = true;
      return;
    }
    if (being_computed(seq, *placement)) return;
    admit(seq, std::move(*placement));
    run_slice(seq, budget);
  }
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
          std::span<const int32_t>(seq.request.tokens).first(static_cast<size_t>(seq.planned)),
          seq.pages, seq.cursor);
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
  auto seq = std::make_unique<Sequence>();
  seq->request = std::move(request);
  seq->arrival = s.arrivals++;
  const auto [it, fresh] = s.sequences.try_emplace(seq->request.id, std::move(seq));
  SHOAL_CHECK(fresh, "request id {} is in use", it->first);
  s.waiting.insert(it->second.get());
  if (*s.waiting.begin() == it->second.get()) s.admission_blocked = false;
}

bool Scheduler::cancel(RequestId id) {
  const auto it = state_->sequences.find(id);
  if (it == state_->sequences.end()) return false;
  state_->remove(*it->second);
  return true;
}

bool Scheduler::has_work() const { return !state_->sequences.empty(); }

std::optional<StepPlan> Scheduler::plan() {
  State& s = *state_;
  SHOAL_CHECK(s.steps - s.applied <= 1, "plan() with two plans not applied");
  if (s.sequences.empty()) return std::nullopt;
  int32_t budget = s.config.max_num_batched_tokens;
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
  for (Sequence* seq : s.running) {
    if (budget == 0) break;
    if (!seq->decoding()) s.run_slice(*seq, budget);
  }
  if (!short_of_pages && s.preemptions == preemptions_before) s.admit_waiting(budget);

  StepPlan plan;
  plan.slices = std::exchange(s.slices, {});
  if (plan.slices.empty()) {
    SHOAL_CHECK(s.steps > s.applied, "nothing to run: {} running, {} waiting", s.running.size(),
                s.waiting.size());
    return std::nullopt;
  }
  plan.number = ++s.steps;
  std::ranges::stable_sort(plan.slices, {}, [](const SequenceSlice& slice) {
    return std::pair(slice.dp_rank, !slice.absorbed);
  });
  s.commit(plan);
  return plan;
}

std::vector<TokenEvent> Scheduler::apply(const StepPlan& plan, const std::vector<Sampled>& sampled) {
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
    Sequence& seq = s.get(slice.request);
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
  for (const auto* sequences : {&state_->ending, &state_->running, &state_->waiting}) {
    for (const Sequence* seq : *sequences) ids.push_back(seq->request.id);
  }
  return ids;
}

SchedulerStats Scheduler::stats() const {
  const State& s = *state_;
  SchedulerStats stats;
  stats.running = static_cast<int64_t>(s.running.size() + s.ending.size());
  stats.waiting = static_cast<int64_t>(s.waiting.size());
  for (const auto& pool : s.pools) {
    stats.pages_total += pool->allocator.num_pages();
    stats.pages_used += pool->allocator.num_pages() - pool->allocator.num_free();
  }
  stats.prefix_queries = s.prefix_queries;
  stats.prefix_hits = s.prefix_hits;
  stats.preemptions = s.preemptions;
  return stats;
}

}  // namespace shoal
