// The pages of one sequence, on the device and below it.
#include <algorithm>
#include <utility>

#include "runtime/scheduler/scheduler_state.h"

namespace shoal {

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
  }
  queue.remove(seq);
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
  queue.wait(seq);
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
    pools[seq.pool]->prefix_cache.insert(
        seq.request.cache_salt,
        std::span<const int32_t>(seq.request.tokens)
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

}  // namespace shoal
