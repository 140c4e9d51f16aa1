#include "runtime/scheduler/scheduler.h"

#include <algorithm>
#include <deque>
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
  // Tokens that steps planned and not applied will add: one each of the steps (sampled_by -
  // pending, sampled_by], which follow each other because a slice that feeds on a sample is in the
  // step after.
  int32_t pending = 0;
  uint64_t sampled_by = 0;
  int32_t sample = 0;  // which of sampled_by's samples
  std::vector<int32_t> pages;
  PrefixCache::Cursor cursor;  // of the prompt's pages in the pool's prefix cache
  // Slots of host memory that hold the KV of pages [first_slot_page, ..), up to token `saved`.
  // While it waits: it was swapped out of `pool`. While it runs: it is being restored, and runs no
  // slice.
  std::vector<int32_t> slots;
  int32_t first_slot_page = 0;
  int32_t saved = 0;
  bool swapped = false;       // whose slots they are: its own, or the prompts'
  std::vector<PageKey> keys;  // of the prompt's full pages, where tiers want to know
  int32_t offered = 0;        // pages of the prompt that the tiers have been told of
  bool load_tried = false;
  uint64_t loading = 0;                  // the ticket that it waits for
  std::optional<int32_t> cached_tokens;  // of the first admission: what the client is told

  int32_t known() const { return static_cast<int32_t>(request.tokens.size()); }
  int32_t length() const { return known() + pending; }
  bool in_prompt() const { return planned < request.prompt_len; }
  bool restoring() const { return planned < saved; }  // of a running one
  bool decoding() const { return !in_prompt() && !restoring() && length() - planned == 1; }
  bool awaits(uint64_t step) const { return step <= sampled_by && step + pending > sampled_by; }
};

struct ByRank {
  bool operator()(const Sequence* a, const Sequence* b) const {
    return std::tie(a->request.priority, a->arrival) < std::tie(b->request.priority, b->arrival);
  }
};

struct Pool {
  Pool(const SchedulerConfig& config, int32_t number)
      : allocator(config.num_pages),
        prefix_cache(allocator, config.page_size),
        tiers(number, config.tiers.host_pages, config.tiers.disk_pages,
              config.tiers.on_disk.empty() ? std::vector<PageKey>{}
                                           : config.tiers.on_disk.at(number)) {}
  BlockAllocator allocator;
  PrefixCache prefix_cache;
  PoolTiers tiers;
  int32_t running = 0;
};

}  // namespace

struct Scheduler::State {
  explicit State(SchedulerConfig c) : config(std::move(c)) {
    SHOAL_CHECK(config.max_num_seqs > 0 && config.max_num_batched_tokens > 0 &&
                config.max_model_len > 1 && config.page_size > 0 && config.num_pages > 0 &&
                config.num_pools > 0);
    const int64_t pool_tokens = int64_t{config.num_pages} * config.page_size;
    if (config.max_model_len > pool_tokens)
      config.max_model_len = static_cast<int32_t>(pool_tokens);
    // Every running sequence gets at least one token in every step.
    config.max_num_seqs = std::min(config.max_num_seqs, config.max_num_batched_tokens);
    std::ranges::sort(config.eos_token_ids);
    SHOAL_CHECK(config.tiers.disk_pages == 0 || config.tiers.host_pages > 0);
    keep_prompts =
        config.enable_prefix_caching && config.tiers.host_pages > 0 && page_keys_supported();
    for (int32_t i = 0; i < config.num_pools; ++i) {
      pools.push_back(std::make_unique<Pool>(config, i));
    }
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
  bool worth_swapping(const Sequence& seq) const;
  void swap_out(Sequence& seq);
  void drop_slots(Sequence& seq);
  void restore(Sequence& seq);
  void offer_pages(Sequence& seq);
  bool wait_for_files(Sequence& seq, int32_t pool, int32_t first_page);
  std::span<const PageKey> keys_from(const Sequence& seq, int32_t first_page) const;
  void run_slice(Sequence& seq, int32_t& budget);
  struct Placement {
    int32_t pool = 0;
    PrefixCache::Match match;
    int32_t known = 0;  // pages after the match that the tiers hold
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
  // The first request that waits for pages; nothing has been freed since it found none.
  const Sequence* blocked = nullptr;
  std::vector<SequenceSlice> slices;  // of the plan being made
  PageWork work;                      // likewise
  bool keep_prompts = false;          // in the tiers
  std::deque<PoolTiers::Load> loads;
  uint64_t tickets = 0;
  TierStats tier_stats;
  int64_t prefix_queries = 0, prefix_hits = 0, preemptions = 0;
};

// Last pages first: a page is reused before the pages that lead to it, which more prompts share.
void Scheduler::State::release_pages(Sequence& seq) {
  BlockAllocator& allocator = pools[seq.pool]->allocator;
  for (auto page = seq.pages.rbegin(); page != seq.pages.rend(); ++page) allocator.release(*page);
  seq.pages.clear();
  seq.cursor = {};
  seq.planned = 0;
  blocked = nullptr;
}

// A step that runs may still read and write the pages: whoever gets them next comes in a later one.
void Scheduler::State::stop_running(Sequence& seq) {
  running.erase(&seq);
  --pools[seq.pool]->running;
  release_pages(seq);
}

void Scheduler::State::drop_slots(Sequence& seq) {
  for (const int32_t slot : seq.slots) pools[seq.pool]->tiers.host.release(slot);
  seq.slots.clear();
  seq.saved = 0;
  seq.swapped = false;
}

void Scheduler::State::remove(Sequence& seq) {
  drop_slots(seq);
  if (running.contains(&seq)) {
    stop_running(seq);
  } else if (ending.erase(&seq) == 0) {
    if (&seq == blocked) blocked = nullptr;
    waiting.erase(&seq);
  }
  sequences.erase(seq.request.id);  // ends seq
}

bool Scheduler::State::worth_swapping(const Sequence& seq) const {
  const TierConfig& tiers = config.tiers;
  const int32_t pages = pages_for(seq.planned);
  if (pages == 0 || pages > pools[seq.pool]->tiers.host.available()) return false;
  switch (tiers.preemption) {
    case PreemptionMode::kSwap: return true;
    case PreemptionMode::kRecompute: return false;
    case PreemptionMode::kAuto: break;
  }
  return 2 * pages * tiers.page_copy_seconds < seq.planned * tiers.token_seconds;
}

// The KV that the steps planned so far compute; a later plan's copies come after those steps.
void Scheduler::State::swap_out(Sequence& seq) {
  HostTier& host = pools[seq.pool]->tiers.host;
  seq.swapped = true;
  seq.saved = seq.planned;
  seq.first_slot_page = 0;
  for (int32_t i = 0; i < pages_for(seq.planned); ++i) {
    seq.slots.push_back(host.take());
    work.copies.push_back({seq.pool, seq.pages[i], seq.slots.back(), true});
  }
  tier_stats.swapped_out += static_cast<int64_t>(seq.slots.size());
}

void Scheduler::State::preempt(Sequence& seq) {
  // One that is still being swapped in has its KV in its slots.
  if (!seq.swapped) {
    drop_slots(seq);
    if (worth_swapping(seq)) swap_out(seq);
  }
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

// Copies the next pages of a sequence out of its slots. They are there for this plan's slices.
void Scheduler::State::restore(Sequence& seq) {
  int64_t& counter = seq.swapped ? tier_stats.swapped_in : tier_stats.restored;
  while (seq.restoring() && work.budget > 0) {
    const int32_t page = seq.planned / config.page_size;
    work.copies.push_back(
        {seq.pool, seq.pages[page], seq.slots[page - seq.first_slot_page], false});
    seq.planned = std::min((page + 1) * config.page_size, seq.saved);
    --work.budget;
    ++counter;
  }
  if (config.enable_prefix_caching) {
    pools[seq.pool]->prefix_cache.insert(std::span<const int32_t>(seq.request.tokens)
                                             .first(std::min(seq.planned, seq.request.prompt_len)),
                                         seq.pages, seq.cursor);
    offer_pages(seq);
  }
  if (!seq.restoring()) drop_slots(seq);
}

// Tells the tiers of the pages that the prefix cache has learnt.
void Scheduler::State::offer_pages(Sequence& seq) {
  if (!keep_prompts) return;
  Pool& pool = *pools[seq.pool];
  for (; seq.offered < seq.cursor.num_pages; ++seq.offered) {
    const int32_t page = seq.pages[seq.offered];
    pool.tiers.offer(page, pool.prefix_cache.entry_of(page), seq.keys.at(seq.offered));
  }
}

// Keys of the prompt's pages from first_page on that a tier could hold; as with the prefix cache,
// one token has to be run.
std::span<const PageKey> Scheduler::State::keys_from(const Sequence& seq,
                                                     int32_t first_page) const {
  if (!keep_prompts) return {};
  const int32_t most = std::min(seq.length() - 1, seq.request.prompt_len) / config.page_size;
  if (first_page >= most) return {};
  return std::span(seq.keys).subspan(first_page, most - first_page);
}

// Whether the sequence waits for pages of its prompt to be read, by itself or with another one.
bool Scheduler::State::wait_for_files(Sequence& seq, int32_t pool, int32_t first_page) {
  if (config.tiers.disk_pages == 0 || seq.swapped) return false;
  const std::span<const PageKey> keys = keys_from(seq, first_page);
  const bool same = std::ranges::any_of(loads, [&](const PoolTiers::Load& load) {
    return load.pool == pool && std::ranges::find(keys, load.pages.front().key) != keys.end();
  });
  if (same) return true;
  if (std::exchange(seq.load_tried, true)) return false;
  std::optional<PoolTiers::Load> load = pools[pool]->tiers.load(keys, ++tickets, work);
  if (!load) return false;
  seq.loading = load->ticket;
  loads.push_back(std::move(*load));
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

// The pool with the longest known prefix, else the most free pages, among those with room.
std::optional<Scheduler::State::Placement> Scheduler::State::place(const Sequence& seq) const {
  // All of a replayed or preempted request's prompt may be known; a new one must run its last
  // token.
  const auto known = std::span<const int32_t>(seq.request.tokens)
                         .first(std::min(seq.length(), seq.request.prompt_len + 1));
  std::optional<Placement> best;
  int32_t best_free = 0;
  for (int32_t i = 0; i < config.num_pools; ++i) {
    if (seq.swapped && i != seq.pool) continue;
    const Pool& pool = *pools[i];
    PrefixCache::Match match;
    if (config.enable_prefix_caching) match = pool.prefix_cache.find(known);
    const auto revived = std::ranges::count_if(
        match.pages, [&](int32_t page) { return pool.allocator.references(page) == 0; });
    const int32_t fresh = pages_for(seq.length()) - match.cursor.num_pages;
    // One page for each running sequence to grow by, so that it need not preempt this one at once.
    const int32_t free = pool.allocator.num_free() - static_cast<int32_t>(revived);
    if (free < fresh + pool.running) continue;
    const auto below =
        static_cast<int32_t>(pool.tiers.known(keys_from(seq, match.cursor.num_pages)));
    if (!best || std::pair(match.cursor.num_pages + below, free) >
                     std::pair(best->match.cursor.num_pages + best->known, best_free)) {
      best = Placement{i, std::move(match), below};
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
  if (!seq.swapped) {
    seq.first_slot_page = seq.cursor.num_pages;
    for (const PageKey& key : keys_from(seq, seq.first_slot_page)) {
      const std::optional<int32_t> slot = pool.tiers.host.find(key);
      if (!slot) break;
      pool.tiers.host.acquire(*slot);
      seq.slots.push_back(*slot);
    }
    const auto restored = static_cast<int32_t>(seq.slots.size());
    seq.saved = restored == 0 ? 0 : (seq.first_slot_page + restored) * config.page_size;
  }
  seq.offered = std::max(seq.offered, std::max(seq.planned, seq.saved) / config.page_size);
  if (!seq.cached_tokens) {
    seq.cached_tokens = std::max(seq.planned, seq.saved);
    prefix_queries += seq.request.prompt_len;
    prefix_hits += *seq.cached_tokens;
  }
  ++pool.running;
  waiting.erase(&seq);
  running.insert(&seq);
  restore(seq);
}

void Scheduler::State::admit_waiting(int32_t& budget) {
  for (auto next = waiting.begin(); next != waiting.end() && budget > 0 && blocked == nullptr &&
                                    static_cast<int32_t>(running.size()) < config.max_num_seqs;) {
    Sequence& seq = **next++;
    if (seq.loading != 0) continue;
    // Preempted while its step runs: only for plans that preempt, which admit nobody.
    SHOAL_CHECK(seq.pending == 0, "request {} waits with a token pending", seq.request.id);
    std::optional<Placement> placement = place(seq);
    if (!placement) {
      blocked = &seq;
      return;
    }
    if (being_computed(seq, *placement)) return;
    if (wait_for_files(seq, placement->pool, placement->match.cursor.num_pages)) continue;
    admit(seq, std::move(*placement));
    if (!seq.restoring()) run_slice(seq, budget);
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
  auto seq = std::make_unique<Sequence>();
  seq->request = std::move(request);
  seq->arrival = s.arrivals++;
  if (s.keep_prompts) {
    seq->keys =
        page_keys(std::span<const int32_t>(seq->request.tokens).first(seq->request.prompt_len),
                  s.config.page_size);
  }
  const auto [it, fresh] = s.sequences.try_emplace(seq->request.id, std::move(seq));
  SHOAL_CHECK(fresh, "request id {} is in use", it->first);
  s.waiting.insert(it->second.get());
  if (s.blocked != nullptr && ByRank()(it->second.get(), s.blocked)) s.blocked = nullptr;
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
  for (Sequence* seq : s.running) {
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
                "nothing to run: {} running, {} waiting", s.running.size(), s.waiting.size());
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
  stats.tiers = s.tier_stats;
  return stats;
}

}  // namespace shoal
