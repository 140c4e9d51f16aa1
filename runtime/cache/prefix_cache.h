// PrefixCache: finds pages that already hold the KV of a prompt's beginning. A page is known by the
// chain of tokens up to its end; a hit compares the tokens themselves, so a hash collision can never
// give one request another's state.
// Not thread-safe: the scheduler owns it.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "runtime/cache/block_allocator.h"

namespace shoal {

class PrefixCache {
 public:
  PrefixCache(BlockAllocator& allocator, int32_t page_size);

  // The pages of the longest known prefix of full pages of `tokens`, at most tokens.size() - 1 tokens
  // (at least one token must be run to get logits). Acquires a reference on each.
  std::vector<int32_t> match(std::span<const int32_t> tokens);
  // `pages[i]` now holds tokens [i * page_size, (i + 1) * page_size). Only full pages are entered;
  // an equal page that is already known wins.
  void insert(std::span<const int32_t> tokens, std::span<const int32_t> pages);
  void forget(int32_t page);
  int64_t size() const { return static_cast<int64_t>(by_key_.size()); }

 private:
  struct Entry {
    int32_t page = 0;
    int32_t parent_page = -1;
    std::vector<int32_t> tokens;
  };
  BlockAllocator& allocator_;
  int32_t page_size_;
  std::unordered_multimap<uint64_t, Entry> by_key_;  // hash of (parent chain, tokens)
  std::unordered_map<int32_t, uint64_t> key_of_page_;
};

}  // namespace shoal
