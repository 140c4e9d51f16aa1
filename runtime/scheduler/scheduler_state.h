// Scheduler::State: what the scheduler keeps of sequences, pools and the plan being made, and the
// decisions that plan() is made of. Private to the scheduler:
//   scheduler.cpp        plan() and apply(), what is asked from outside
//   admission.cpp        which waiting sequence runs next, and where (in the order of FairQueue)
//   sequence_pages.cpp   pages and slots of one sequence: given, swapped, restored, taken away
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/cache/block_allocator.h"
#include "runtime/cache/prefix_cache.h"
#include "runtime/scheduler/fair_queue.h"
#include "runtime/scheduler/scheduler.h"

namespace shoal {

struct Scheduler::State {
  // The KV of positions [0, planned) is in `pages`, once the steps planned so far have run.
  struct Sequence : FairQueue::Entry {
    Request request;
    int32_t charged = 0;  // of its first tokens, what its client has been charged for or found cached
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
  FairQueue queue;  // all sequences; among them what waits
  // `ending` have been given all their slices and only await their last token: they hold no pages.
  std::set<Sequence*, FairQueue::ByTurn> running, ending;
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

}  // namespace shoal
