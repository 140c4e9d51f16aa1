// A paged batch for the attention tests: sequences of given contexts and query lengths, pages of
// the cache dealt out in random order.
#pragma once

#include "tests/kernels/support/test_data.h"

namespace shoal::test {

struct PagedCase {
  HostTensor query_start, context_len, block_tables;
  PagedBatch batch;
  int64_t num_slots = 0;
  int64_t num_tokens = 0;

  // sequences: {tokens of this step, context after it}.
  PagedCase(Random& random, const std::vector<std::pair<int32_t, int32_t>>& sequences,
            int32_t page_size) {
    std::vector<int32_t> starts = {0}, contexts;
    int64_t max_pages = 1, pages = 0;
    for (const auto& [tokens, context] : sequences) {
      starts.push_back(starts.back() + tokens);
      contexts.push_back(context);
      const int64_t needed = (context + page_size - 1) / page_size;
      max_pages = std::max(max_pages, needed);
      pages += needed;
    }
    const std::vector<int32_t> order = random.permutation(pages + 3);
    const auto n = static_cast<int64_t>(sequences.size());
    std::vector<int32_t> tables(n * max_pages, -1);  // a page that is not there must not be read
    int64_t next = 0;
    for (int64_t s = 0; s < n; ++s) {
      for (int64_t p = 0; p < (contexts[s] + page_size - 1) / page_size; ++p) {
        tables[s * max_pages + p] = order[next++];
      }
    }
    num_slots = (pages + 3) * page_size;
    num_tokens = starts.back();
    query_start = HostTensor::ints({n + 1}, starts);
    context_len = HostTensor::ints({n}, contexts);
    block_tables = HostTensor::ints({n, max_pages}, tables);
    batch = {page_size, query_start, context_len, block_tables};
  }
};

}  // namespace shoal::test
