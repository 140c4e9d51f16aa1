// What the attention verbs share: query rows, work units, and how units are shared out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace shoal {

// Keys are folded into the running softmax in blocks that begin at multiples of this position, so
// that a row's result does not depend on how its prompt was cut (into chunks of whole blocks) nor
// on the rows beside it.
inline constexpr int64_t kKeyBlock = 16;

// One query (a token and a head) and its running softmax.
struct QueryRow {
  const float* q;    // [d]
  float* acc;        // [dv], sum of p * v so far
  float* max;        // of the scores so far; -inf at first
  float* sum;        // of p so far
  int64_t num_keys;  // it attends to positions [0, num_keys)
};

// A block of keys and values as floats.
struct KeyBlock {
  const float* keys;  // [count, d]
  int64_t key_stride;
  const float* values;  // [count, dv]
  int64_t value_stride;
  int64_t d, dv;
  int64_t position;  // of the first key
  int64_t count;     // <= kKeyBlock
};

// Row r of the batch: its sequence and how many keys it sees.
struct TokenContext {
  int32_t sequence;
  int64_t num_keys;
};

// Checks the batch against num_tokens rows and lists the context of each.
std::vector<TokenContext> token_contexts(const PagedBatch& batch, int64_t num_tokens);

// Work is a list of groups (all rows that share staged keys), each of `tiles` equal tiles of rows.
struct WorkGroup {
  int64_t first_token, num_tokens;  // of the batch
  int64_t head;                     // KV head or head
  int64_t tiles;
  int64_t tile_cost;  // keys to read
};

// Calls body(group, first tile, end tile, worker) so that every tile is covered once and each
// worker gets neighbouring tiles of about equal cost.
template <typename Pool, typename Body>
void share_work(const std::vector<WorkGroup>& groups, Pool& pool, const Body& body) {
  int64_t total = 0;
  for (const WorkGroup& group : groups) total += group.tiles * group.tile_cost;
  const int64_t workers = pool.num_threads();
  pool.parallel_for(workers, 1, [&](int64_t first, int64_t last, int worker) {
    const int64_t begin = total / workers * first;
    const int64_t end = last == workers ? total : total / workers * last;
    int64_t before = 0;
    for (const WorkGroup& group : groups) {
      const auto first_at = [&](int64_t cost) {
        return std::clamp<int64_t>((cost - before + group.tile_cost - 1) / group.tile_cost, 0,
                                   group.tiles);
      };
      const int64_t t0 = begin <= before ? 0 : first_at(begin);
      const int64_t t1 = end <= before ? 0 : first_at(end);
      if (t0 < t1) body(group, t0, t1, worker);
      before += group.tiles * group.tile_cost;
    }
  });
}

}  // namespace shoal
