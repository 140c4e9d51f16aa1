// BlockAllocator: reference-counted pages of one KV pool. Pure bookkeeping, no memory.
// Pages freed by their last holder go to the end of a free list, so that pages the prefix cache still
// remembers live as long as they can (least recently used goes first).
// Not thread-safe: the scheduler owns it.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <vector>

namespace shoal {

class BlockAllocator {
 public:
  explicit BlockAllocator(int32_t num_pages);

  int32_t num_pages() const { return static_cast<int32_t>(pages_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }

  // A page with one reference. REQUIRES: num_free() > 0. Calls on_reuse(page) first, so that the
  // prefix cache forgets what the page held.
  int32_t allocate();
  void acquire(int32_t page);  // one more reference; also revives a free page
  void release(int32_t page);
  int32_t references(int32_t page) const { return pages_[page].references; }
  void set_on_reuse(std::function<void(int32_t)> on_reuse) { on_reuse_ = std::move(on_reuse); }

 private:
  struct Page {
    int32_t references = 0;
    std::list<int32_t>::iterator in_free;
  };
  std::vector<Page> pages_;
  std::list<int32_t> free_;  // least recently freed first
  std::function<void(int32_t)> on_reuse_;
};

}  // namespace shoal
