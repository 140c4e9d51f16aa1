// PrefixCache: finds pages that already hold the KV of a prompt's beginning. A page is known by the
// chain of tokens up to its end.
//
// Every entry has an id that is never given twice, and is found by (id of its parent entry, its own
// tokens), both of which are compared and not only hashed. So a hit proves by induction that all
// tokens up to the page's end are equal: no hash collision can give one request another's state, and
// when a parent is forgotten and its page reused, its children can no longer be reached.
//
// Entries of a first page are also found by a salt, compared like the tokens: what was entered under one
// salt is not found under another (Request::cache_salt).
// Not thread-safe: the scheduler owns it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/cache/block_allocator.h"

namespace shoal {

class PrefixCache {
 public:
  // Where a sequence's chain stands, so that entering its next page does not walk the chain anew.
  struct Cursor {
    uint64_t entry = 0;  // 0: the root, before the first page
    int32_t num_pages = 0;
  };
  struct Match {
    std::vector<int32_t> pages;
    Cursor cursor;
  };

  // Sets the allocator's on_reuse, which forgets a page. `allocator` must outlive the cache.
  PrefixCache(BlockAllocator& allocator, int32_t page_size);

  // The pages of the longest known prefix of full pages of `tokens`, at most tokens.size() - 1 tokens
  // (at least one token must be run to get logits). Takes no references: acquire the pages before the
  // next allocate().
  Match find(std::string_view salt, std::span<const int32_t> tokens) const;
  // `pages[i]` now holds tokens [i * page_size, (i + 1) * page_size). Enters the full pages of
  // `tokens` after `cursor` and moves it; an equal page that is already known wins.
  void insert(std::string_view salt, std::span<const int32_t> tokens, std::span<const int32_t> pages,
              Cursor& cursor);
  void forget(int32_t page);
  // The entry that `page` holds now; 0: none. Another one as soon as the page is given to somebody else.
  uint64_t entry_of(int32_t page) const { return entry_of_page_.at(static_cast<size_t>(page)); }
  int64_t size() const { return static_cast<int64_t>(entries_.size()); }

 private:
  struct Entry {
    uint64_t parent = 0;
    uint64_t key = 0;             // in by_key_
    int32_t page = 0;
    std::string salt;             // of a first page; others have their parent's
    std::vector<int32_t> tokens;  // [page_size]
  };
  bool reachable(uint64_t id) const;
  uint64_t lookup(uint64_t parent, uint64_t key, std::string_view salt,
                  std::span<const int32_t> tokens) const;

  int32_t page_size_;
  uint64_t last_entry_ = 0;
  std::unordered_map<uint64_t, Entry> entries_;           // by id
  std::unordered_multimap<uint64_t, uint64_t> by_key_;    // hash of (parent, salt, tokens) -> id
  std::vector<uint64_t> entry_of_page_;                   // [num_pages], 0: none
};

}  // namespace shoal
