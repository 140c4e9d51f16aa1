#include "runtime/cache/block_allocator.h"

#include "kernels/base/error.h"

namespace shoal {

BlockAllocator::BlockAllocator(int32_t num_pages) {
  SHOAL_CHECK(num_pages >= 0, "num_pages {}", num_pages);
  pages_.resize(static_cast<size_t>(num_pages));
  for (int32_t page = 0; page < num_pages; ++page) {
    pages_[page].in_free = free_.insert(free_.end(), page);
  }
}

int32_t BlockAllocator::allocate() {
  SHOAL_CHECK(!free_.empty(), "no free page");
  const int32_t page = free_.front();
  if (on_reuse_) on_reuse_(page);
  free_.pop_front();
  pages_[page].references = 1;
  return page;
}

void BlockAllocator::acquire(int32_t page) {
  Page& p = pages_.at(static_cast<size_t>(page));
  if (p.references == 0) free_.erase(p.in_free);
  ++p.references;
}

void BlockAllocator::release(int32_t page) {
  Page& p = pages_.at(static_cast<size_t>(page));
  SHOAL_CHECK(p.references > 0, "page {} released too often", page);
  if (--p.references == 0) p.in_free = free_.insert(free_.end(), page);
}

}  // namespace shoal
