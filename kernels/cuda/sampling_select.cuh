// sampling_select.cuh: the one search that sampling needs, by a block over one row: the shortest
// prefix of the tokens in rank order (largest logit first, lower id first among equals) that holds
// a wanted amount, counted in tokens (top-k, top-n logprobs) or in probability (top-p, a draw after
// top-k). No sort of the vocabulary: a histogram finds the bucket in which the prefix ends, and
// only that bucket is sorted.
#pragma once

#include "kernels/cuda/ordered.cuh"
#include "kernels/cuda/scan.cuh"

namespace shoal::gpu {

constexpr int kSampleThreads = 1024;
constexpr int kBuckets = 2048;
constexpr int kSorted = kSampleThreads;  // tokens that are sorted in shared memory, one per thread
constexpr float kMassUnit = 0x1p44f;

// An amount of probability in units of 2^-44, or a count.
using Amount = unsigned long long;

struct Histogram {
  Amount amount[kBuckets];
  uint32_t count[kBuckets];
};

struct SelectShared {
  union {
    Histogram histogram;
    uint64_t ranks[kSorted];
  };
  Amount scratch[kWarp];
  Amount before;   // in higher buckets (or ranks) than the one found
  Amount amount;   // in the one found
  uint64_t rank;   // found
  uint32_t count;  // tokens in the bucket found
  int32_t bucket;  // found
  uint32_t num_ranks;
};

// One row while it is being sampled. The same in all threads.
struct SampleState {
  const float* logits;
  int32_t vocab;
  float max;     // its largest logit
  float spread;  // max - smallest finite logit
  float temperature, min_p;
  uint64_t floor = 0;  // tokens of lower rank are out: what top-k and top-p have cut so far

  __device__ uint64_t rank(int32_t id) const { return ranked(ordered(logits[id]), id); }
  // Weight relative to the most likely token; zero for what min-p cuts.
  __device__ Amount mass(float logit) const {
    const float weight = expf((logit - max) / temperature);
    return weight < min_p ? 0 : static_cast<Amount>(weight * kMassUnit);
  }
};

struct Prefix {
  uint64_t last;  // rank of its last token
  Amount amount;  // what it holds
};

// body(id) for every token of the row, each by one thread.
template <typename Body>
__device__ __forceinline__ void for_vocab(int32_t vocab, const Body& body) {
  for (int32_t id = threadIdx.x; id < vocab; id += kSampleThreads) body(id);
}

// ranks[0 .. kSorted), descending (bitonic: log2(1024) * 11 / 2 steps).
__device__ __forceinline__ void sort_ranks(uint64_t* ranks) {
  const int i = threadIdx.x;
  for (int size = 2; size <= kSorted; size *= 2) {
    for (int distance = size / 2; distance > 0; distance /= 2) {
      const int other = i ^ distance;
      if (other > i) {
        const bool descending = (i & size) == 0;
        const uint64_t a = ranks[i], b = ranks[other];
        if ((a < b) == descending) {
          ranks[i] = b;
          ranks[other] = a;
        }
      }
      __syncthreads();
    }
  }
}

// The ranks for which accept(rank), at most kSorted of them, into shared.ranks, sorted; zeros
// behind. The order in which threads find places does not show after the sort.
template <typename Accept>
__device__ __forceinline__ void collect_ranks(const SampleState& row, SelectShared& shared,
                                              const Accept& accept) {
  shared.ranks[threadIdx.x] = 0;
  if (threadIdx.x == 0) shared.num_ranks = 0;
  __syncthreads();
  for_vocab(row.vocab, [&](int32_t id) {
    const uint64_t rank = row.rank(id);
    if (accept(rank)) shared.ranks[atomicAdd(&shared.num_ranks, 1u)] = rank;
  });
  __syncthreads();
  sort_ranks(shared.ranks);
}

// Level 0 divides evenly by distance from the largest logit, which spreads any model's logits over
// the buckets (by the bits of the floats, nearly all would meet in a few, and their atomics with
// them). The further levels, for buckets of more than kSorted tokens, go by the bits of the rank:
// 11 + 11 + 10 of the value, 11 + 10 of the id (of 2^21 at most), so that after the last a bucket
// is one token.
constexpr int kRankLevels = 5;
__device__ __forceinline__ int shift_of_level(int level) {
  return level == 1 ? 53 : level == 2 ? 42 : level == 3 ? 32 : level == 4 ? 10 : 0;
}

// The shortest prefix of the tokens at or above row.floor that holds wanted(the amount of all of
// them), which is between 1 and that. measure(logit) gives a token's amount. `span`: tokens that
// far below the largest logit may share the last bucket.
template <typename Measure, typename Wanted>
__device__ __forceinline__ Prefix select_prefix(const SampleState& row, SelectShared& shared,
                                                float span, const Measure& measure,
                                                const Wanted& wanted) {
  const float per_unit = span > 0 ? (kBuckets - 1) / span : 0.0f;
  const auto first_bucket = [&](float logit) {
    return static_cast<int32_t>(fminf((row.max - logit) * per_unit, kBuckets - 1.0f));
  };
  Amount left = 0;  // wanted of what has not been passed
  int32_t first = 0;
  // The rank's bits that the levels so far have settled. Those of the id that no level looks at are
  // ones, as ids are below 2^21 and ranks hold them inverted.
  uint64_t pattern = ~uint64_t{0};
  Amount passed = 0;
  // Tokens in the buckets chosen at levels below `level`.
  const auto inside = [&](uint64_t rank, int level) {
    return rank >= row.floor && (level < 1 || first_bucket(value_of_rank(rank)) == first) &&
           (level < 2 || (rank ^ pattern) >> shift_of_level(level - 1) == 0);
  };
  for (int level = 0;; ++level) {
    for (int b = threadIdx.x; b < kBuckets; b += kSampleThreads) {
      shared.histogram.amount[b] = 0;
      shared.histogram.count[b] = 0;
    }
    __syncthreads();
    for_vocab(row.vocab, [&](int32_t id) {
      const uint64_t rank = row.rank(id);
      if (!inside(rank, level)) return;
      const float logit = value_of_rank(rank);
      const Amount amount = measure(logit);
      if (amount == 0) return;
      const int32_t bucket =
          level == 0
              ? first_bucket(logit)
              : kBuckets - 1 - static_cast<int32_t>(rank >> shift_of_level(level) & (kBuckets - 1));
      atomicAdd(&shared.histogram.amount[bucket], amount);
      atomicAdd(&shared.histogram.count[bucket], 1u);
    });
    __syncthreads();
    const int b0 = 2 * threadIdx.x;
    const Amount a0 = shared.histogram.amount[b0], a1 = shared.histogram.amount[b0 + 1];
    Amount total;
    const Amount before = exclusive_scan(a0 + a1, shared.scratch, total);
    if (level == 0) left = wanted(total);
    if (before < left && left <= before + a0 + a1) {
      const int odd = left > before + a0 ? 1 : 0;
      shared.bucket = b0 + odd;
      shared.before = before + (odd ? a0 : 0);
      shared.count = shared.histogram.count[b0 + odd];
    }
    __syncthreads();
    left -= shared.before;
    passed += shared.before;
    if (level == 0) {
      first = shared.bucket;
    } else {
      // Levels overlap by a bit, which all tokens inside share.
      const int shift = shift_of_level(level);
      const auto digit = static_cast<uint64_t>(kBuckets - 1 - shared.bucket);
      pattern = (pattern & ~(uint64_t{kBuckets - 1} << shift)) | digit << shift;
    }
    const uint32_t count = shared.count;
    __syncthreads();  // the histogram becomes the ranks
    if (count > kSorted && level < kRankLevels) continue;
    collect_ranks(row, shared, [&](uint64_t rank) {
      return inside(rank, level + 1) && measure(value_of_rank(rank)) != 0;
    });
    const uint64_t rank = shared.ranks[threadIdx.x];
    const Amount amount = rank == 0 ? 0 : measure(value_of_rank(rank));
    const Amount below = exclusive_scan(amount, shared.scratch, total);
    if (below < left && left <= below + amount) {
      shared.rank = rank;
      shared.amount = below + amount;
    }
    __syncthreads();
    const Prefix prefix{shared.rank, passed + shared.amount};
    __syncthreads();  // shared may be used again
    return prefix;
  }
}

}  // namespace shoal::gpu
