// Which waiting sequence runs next, and in which pool.
#include <algorithm>
#include <utility>

#include "runtime/scheduler/scheduler_state.h"

namespace shoal {

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
    if (config.enable_prefix_caching) {
      match = pool.prefix_cache.find(seq.request.cache_salt, known);
    }
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
           seq.request.cache_salt == other->request.cache_salt &&
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
  queue.start(seq);
  running.insert(&seq);
  restore(seq);
}

void Scheduler::State::admit_waiting(int32_t& budget) {
  // Nothing has been freed since it found no pages, but another client's turn may have come.
  if (blocked != nullptr && queue.overtaken(*blocked)) blocked = nullptr;
  queue.visit([&](FairQueue::Entry& entry) {
    if (budget <= 0 || blocked != nullptr ||
        static_cast<int32_t>(running.size()) >= config.max_num_seqs) {
      return false;
    }
    Sequence& seq = static_cast<Sequence&>(entry);
    if (seq.loading != 0) return true;
    // Preempted while its step runs: only for plans that preempt, which admit nobody.
    SHOAL_CHECK(seq.pending == 0, "request {} waits with a token pending", seq.request.id);
    std::optional<Placement> placement = place(seq);
    if (!placement) {
      blocked = &seq;
      return false;
    }
    if (being_computed(seq, *placement)) return false;
    if (wait_for_files(seq, placement->pool, placement->match.cursor.num_pages)) {
      if (seq.turn == 0) queue.give_turn(seq);
      return true;
    }
    admit(seq, std::move(*placement));
    if (!seq.restoring()) run_slice(seq, budget);
    return true;
  });
}

}  // namespace shoal
