#include "runtime/scheduler/pool_tiers.h"

#include <utility>

namespace shoal {

void PoolTiers::offer(int32_t page, uint64_t entry, const PageKey& key) {
  offered_.push_back({page, entry, key});
}

void PoolTiers::spill(const PrefixCache& prefixes, PageWork& work, TierStats& stats) {
  for (const Unsaved& u : std::exchange(unsaved_, {})) {
    if (host.find(u.key) != u.slot || disk.contains(u.key)) continue;
    work.files.push_back({PageFile::Kind::kSave, pool_, u.slot, 0, u.key});
    ++stats.saved;
    if (const auto evicted = disk.insert(u.key)) {
      work.files.push_back({PageFile::Kind::kDrop, pool_, 0, 0, *evicted});
    }
  }
  while (!offered_.empty() && work.budget > 0) {
    const Offer offer = offered_.front();
    offered_.pop_front();
    // Known already, given to somebody else since, or equal to a page that another sequence has
    // computed.
    if (host.find(offer.key) || disk.contains(offer.key) ||
        prefixes.entry_of(offer.page) != offer.entry) {
      continue;
    }
    if (host.available() == 0) {  // all hold preempted sequences, which matter more
      offered_.clear();
      return;
    }
    const int32_t slot = host.take();
    host.enter(slot, offer.key);
    host.release(slot);
    work.copies.push_back({pool_, offer.page, slot, true});
    --work.budget;
    ++stats.spilled;
    if (disk.max_pages() > 0) unsaved_.push_back({slot, offer.key});
  }
}

int64_t PoolTiers::known(std::span<const PageKey> keys) const {
  int64_t count = 0;
  for (const PageKey& key : keys) {
    if (!host.find(key) && !disk.contains(key)) break;
    ++count;
  }
  return count;
}

std::optional<PoolTiers::Load> PoolTiers::load(std::span<const PageKey> keys, uint64_t ticket,
                                               PageWork& work) {
  Load load{ticket, pool_, {}};
  std::vector<int32_t> kept;  // slots of the same prompt are not what has to go
  for (const PageKey& key : keys) {
    if (const std::optional<int32_t> slot = host.find(key)) {
      host.acquire(*slot);
      kept.push_back(*slot);
      continue;
    }
    if (!disk.contains(key) || host.available() == 0) break;
    disk.touch(key);
    load.pages.push_back({PageFile::Kind::kLoad, pool_, host.take(), ticket, key});
  }
  for (const int32_t slot : kept) host.release(slot);
  if (load.pages.empty()) return std::nullopt;
  work.files.insert(work.files.end(), load.pages.begin(), load.pages.end());
  return load;
}

void PoolTiers::loaded(const Load& load, int64_t count, PageWork& work, TierStats& stats) {
  stats.loaded += count;
  for (size_t i = 0; i < load.pages.size(); ++i) {
    const PageFile& page = load.pages[i];
    if (static_cast<int64_t>(i) < count) {
      host.enter(page.slot, page.key);
    } else if (static_cast<int64_t>(i) == count) {
      disk.erase(page.key);  // one that some rank has not; those after it were not tried
      work.files.push_back({PageFile::Kind::kDrop, pool_, 0, 0, page.key});
    }
    host.release(page.slot);
  }
}

}  // namespace shoal
