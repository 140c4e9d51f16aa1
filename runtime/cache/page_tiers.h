// What lies below the pages of one pool: HostTier, its slots in host memory, and DiskTier, its
// files. Pure bookkeeping, as the block allocator: every rank of the pool has the same slots and
// files, because all of them carry out the same plans (runtime/engine/page_store.h moves the
// bytes). Not thread-safe: the scheduler owns them.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <unordered_map>
#include <vector>

#include "runtime/cache/block_allocator.h"
#include "runtime/cache/page_key.h"

namespace shoal {

// A slot holds one page: a preempted sequence's, which it has a reference to, or a prompt's that is
// known by its key and stays, without references, until its slot is needed: least recently used
// first.
class HostTier {
 public:
  explicit HostTier(int32_t num_slots);

  int32_t num_slots() const { return slots_.num_pages(); }
  int32_t available() const { return slots_.num_free(); }  // without references
  int32_t take();  // with one reference; forgets what it held. REQUIRES: available() > 0
  void acquire(int32_t slot) { slots_.acquire(slot); }
  void release(int32_t slot) { slots_.release(slot); }
  // What `slot` holds has this key from now on; where another slot has the key already, that one
  // keeps it.
  void enter(int32_t slot, const PageKey& key);
  std::optional<int32_t> find(const PageKey& key) const;

 private:
  BlockAllocator slots_;
  std::unordered_map<PageKey, int32_t, PageKeyHash> by_key_;
  std::vector<std::optional<PageKey>> key_of_slot_;
};

class DiskTier {
 public:
  // `found`: keys of the files that are there, least recently used first; at most max_pages of
  // them.
  DiskTier(int64_t max_pages, const std::vector<PageKey>& found);

  bool contains(const PageKey& key) const { return entries_.contains(key); }
  void touch(const PageKey& key);
  // Enters a key; returns the one whose file has to go for it. REQUIRES: max_pages > 0.
  std::optional<PageKey> insert(const PageKey& key);
  void erase(const PageKey& key);
  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  int64_t max_pages() const { return max_pages_; }

 private:
  int64_t max_pages_;
  std::list<PageKey> order_;  // least recently used first
  std::unordered_map<PageKey, std::list<PageKey>::iterator, PageKeyHash> entries_;
};

}  // namespace shoal
