#include "runtime/cache/prefix_cache.h"

#include <algorithm>
#include <functional>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// Only spreads entries over buckets; what is found is compared.
uint64_t bucket_key(uint64_t parent, std::string_view salt, std::span<const int32_t> tokens) {
  uint64_t h = parent * 0x9E3779B97F4A7C15u ^ std::hash<std::string_view>()(salt);
  for (int32_t token : tokens) {
    h ^= static_cast<uint32_t>(token);
    h *= 0xFF51AFD7ED558CCDu;
    h ^= h >> 32;
  }
  return h;
}

}  // namespace

PrefixCache::PrefixCache(BlockAllocator& allocator, int32_t page_size)
    : page_size_(page_size), entry_of_page_(static_cast<size_t>(allocator.num_pages()), 0) {
  SHOAL_CHECK(page_size > 0, "page_size {}", page_size);
  allocator.set_on_reuse([this](int32_t page) { forget(page); });
}

uint64_t PrefixCache::lookup(uint64_t parent, uint64_t key, std::string_view salt,
                             std::span<const int32_t> tokens) const {
  auto [begin, end] = by_key_.equal_range(key);
  for (auto it = begin; it != end; ++it) {
    const Entry& entry = entries_.at(it->second);
    if (entry.parent == parent && entry.salt == salt && std::ranges::equal(entry.tokens, tokens)) {
      return it->second;
    }
  }
  return 0;
}

bool PrefixCache::reachable(uint64_t id) const {
  while (id != 0) {
    const auto entry = entries_.find(id);
    if (entry == entries_.end()) return false;
    id = entry->second.parent;
  }
  return true;
}

PrefixCache::Match PrefixCache::find(std::string_view salt,
                                     std::span<const int32_t> tokens) const {
  Match match;
  if (tokens.empty()) return match;
  const size_t page_size = static_cast<size_t>(page_size_);
  const size_t max_pages = (tokens.size() - 1) / page_size;
  for (size_t i = 0; i < max_pages; ++i) {
    const auto page_tokens = tokens.subspan(i * page_size, page_size);
    const uint64_t parent = match.cursor.entry;
    const std::string_view own_salt = parent == 0 ? salt : "";
    const uint64_t id =
        lookup(parent, bucket_key(parent, own_salt, page_tokens), own_salt, page_tokens);
    if (id == 0) break;
    match.pages.push_back(entries_.at(id).page);
    match.cursor = {id, static_cast<int32_t>(i + 1)};
  }
  return match;
}

void PrefixCache::insert(std::string_view salt, std::span<const int32_t> tokens,
                         std::span<const int32_t> pages, Cursor& cursor) {
  const size_t page_size = static_cast<size_t>(page_size_);
  const size_t full_pages = std::min(tokens.size() / page_size, pages.size());
  // The chain may lead over pages of other sequences that have been forgotten since.
  if (!reachable(cursor.entry)) cursor = {};
  for (size_t i = static_cast<size_t>(cursor.num_pages); i < full_pages; ++i) {
    const auto page_tokens = tokens.subspan(i * page_size, page_size);
    const std::string_view own_salt = cursor.entry == 0 ? salt : "";
    const uint64_t key = bucket_key(cursor.entry, own_salt, page_tokens);
    uint64_t id = lookup(cursor.entry, key, own_salt, page_tokens);
    if (id == 0) {
      forget(pages[i]);  // it may be known under a parent that is gone
      id = ++last_entry_;
      entries_.emplace(id, Entry{cursor.entry, key, pages[i], std::string(own_salt),
                                 std::vector<int32_t>(page_tokens.begin(), page_tokens.end())});
      by_key_.emplace(key, id);
      entry_of_page_.at(static_cast<size_t>(pages[i])) = id;
    }
    cursor = {id, static_cast<int32_t>(i + 1)};
  }
}

void PrefixCache::forget(int32_t page) {
  uint64_t& id = entry_of_page_.at(static_cast<size_t>(page));
  if (id == 0) return;
  const auto entry = entries_.find(id);
  auto [begin, end] = by_key_.equal_range(entry->second.key);
  by_key_.erase(std::find_if(begin, end, [&](const auto& e) { return e.second == id; }));
  entries_.erase(entry);
  id = 0;
}

}  // namespace shoal
