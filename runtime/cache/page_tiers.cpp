#include "runtime/cache/page_tiers.h"

#include "kernels/base/error.h"

namespace shoal {

HostTier::HostTier(int32_t num_slots)
    : slots_(num_slots), key_of_slot_(static_cast<size_t>(num_slots)) {
  slots_.set_on_reuse([this](int32_t slot) {
    std::optional<PageKey>& key = key_of_slot_[static_cast<size_t>(slot)];
    if (key) by_key_.erase(*key);
    key.reset();
  });
}

int32_t HostTier::take() { return slots_.allocate(); }

void HostTier::enter(int32_t slot, const PageKey& key) {
  if (by_key_.try_emplace(key, slot).second) key_of_slot_[static_cast<size_t>(slot)] = key;
}

std::optional<int32_t> HostTier::find(const PageKey& key) const {
  const auto it = by_key_.find(key);
  return it == by_key_.end() ? std::nullopt : std::optional(it->second);
}

DiskTier::DiskTier(int64_t max_pages, const std::vector<PageKey>& found) : max_pages_(max_pages) {
  SHOAL_CHECK(static_cast<int64_t>(found.size()) <= max_pages, "{} files of {}", found.size(),
              max_pages);
  for (const PageKey& key : found) insert(key);
}

void DiskTier::touch(const PageKey& key) {
  const auto it = entries_.find(key);
  if (it != entries_.end()) order_.splice(order_.end(), order_, it->second);
}

std::optional<PageKey> DiskTier::insert(const PageKey& key) {
  SHOAL_CHECK(max_pages_ > 0, "no room for files");
  if (contains(key)) {
    touch(key);
    return std::nullopt;
  }
  std::optional<PageKey> evicted;
  if (size() == max_pages_) {
    evicted = order_.front();
    erase(*evicted);
  }
  entries_[key] = order_.insert(order_.end(), key);
  return evicted;
}

void DiskTier::erase(const PageKey& key) {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  order_.erase(it->second);
  entries_.erase(it);
}

}  // namespace shoal
