// PoolTiers: what the scheduler does with the tiers below one pool's pages. Every prompt's page
// that enters the prefix cache is offered: the next plan copies it to a slot of the host tier, and
// the plan after that saves the slot to the checkpoint. So a page that the device gives to another,
// or that a restart loses, is still known by its key. And a prompt whose next pages are only in
// files has them loaded into slots before it is admitted (Load). Pure, as the scheduler, which owns
// it.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "runtime/cache/page_tiers.h"
#include "runtime/cache/prefix_cache.h"
#include "runtime/scheduler/step_plan.h"
#include "runtime/scheduler/tier_stats.h"

namespace shoal {

// The page work of the plan being made.
struct PageWork {
  std::vector<PageCopy> copies;
  std::vector<PageFile> files;
  int32_t budget = 0;  // copies that may still be added for prompts
  bool empty() const { return copies.empty() && files.empty(); }
};

class PoolTiers {
 public:
  // on_disk: least recently used first, at most disk_pages.
  PoolTiers(int32_t pool, int32_t host_slots, int64_t disk_pages,
            const std::vector<PageKey>& on_disk)
      : host(host_slots), disk(disk_pages, on_disk), pool_(pool) {}

  // `page` is `entry` of the prefix cache and has this key, from the plan being made on.
  void offer(int32_t page, uint64_t entry, const PageKey& key);
  // At the beginning of a plan: saves what the plans before copied, copies what they offered.
  void spill(const PrefixCache& prefixes, PageWork& work, TierStats& stats);
  bool has_work() const { return !offered_.empty() || !unsaved_.empty(); }

  // How many of `keys`, from the first on, are in a slot or a file.
  int64_t known(std::span<const PageKey> keys) const;
  // Takes slots for the pages of keys[0, known) that are only in files, as many as there are, and
  // has them read; nothing when there are none, or no slots.
  struct Load {
    uint64_t ticket = 0;
    int32_t pool = 0;
    std::vector<PageFile> pages;
  };
  std::optional<Load> load(std::span<const PageKey> keys, uint64_t ticket, PageWork& work);
  // The first `count` of its pages are in their slots. The file of the one after them is forgotten
  // and removed.
  void loaded(const Load& load, int64_t count, PageWork& work, TierStats& stats);

  HostTier host;
  DiskTier disk;

 private:
  struct Offer {
    int32_t page;
    uint64_t entry;
    PageKey key;
  };
  struct Unsaved {
    int32_t slot;
    PageKey key;
  };
  int32_t pool_;
  std::deque<Offer> offered_;
  std::vector<Unsaved> unsaved_;
};

}  // namespace shoal
