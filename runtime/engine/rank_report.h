// RankReport: what one rank tells rank 0 once a second of what its steps have cost, and what rank 0
// makes of all of them. Plain data; counts since start.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/memory_ledger.h"
#include "parallel/collectives.h"

namespace shoal {

// Bounds of histograms: counts[i] of values <= bounds[i] and above the bound before, the last of the rest.
template <size_t N>
struct BucketCounts {
  std::array<uint64_t, N + 1> counts{};
  double sum = 0;
  void add(const std::array<double, N>& bounds, double value) {
    size_t i = 0;
    while (i < N && value > bounds[i]) ++i;
    ++counts[i];
    sum += value;
  }
};
// Tokens of a step: vLLM's iteration_tokens_total.
inline constexpr std::array<double, 14> kStepTokenBounds = {1,   8,    16,   32,   64,   128,  256,
                                                            512, 1024, 2048, 4096, 8192, 16384, 32768};
// Of a step: from what a small model needs on a GPU to a long prompt's chunk on a CPU.
inline constexpr std::array<double, 14> kStepSecondsBounds = {.001, .0025, .005, .01, .025, .05, .1,
                                                              .25,  .5,    1,    2.5, 5,    10,  30};

struct RankStats {
  uint64_t steps = 0;
  // From a plan's arrival to the end of its step: of a rank that runs ahead, to the end of the one before.
  double step_seconds = 0;
  double collective_seconds = 0;  // Collectives::seconds()
  std::array<int64_t, kNumTraffic> bytes_sent{};
  std::array<uint64_t, kNumMemoryUses> memory{};  // the most that the device has handed out, by use
  uint64_t resident_bytes = 0;                    // of the process, in host memory
  uint64_t expert_rows = 0;  // that its experts were given; 0: not counted
};

struct RankReport {
  RankStats stats;
  uint64_t layers = 0;                 // with experts that are counted
  std::vector<uint64_t> expert_rows;   // [layers, experts of this rank]

  std::vector<std::byte> serialize() const;
  // Length-checked; throws Bug when the bytes are not a report.
  static RankReport deserialize(std::span<const std::byte> bytes);
};

// How evenly the router uses the experts, over about the last ten reports.
struct ExpertBalance {
  // Rows of the busiest expert over the mean of all; 1: even; 0: nothing was counted. The mean over layers,
  // and the layer where it is largest.
  double mean_imbalance = 0, worst_imbalance = 0;
  int32_t worst_layer = 0;      // counted among the layers with experts
  double rank_imbalance = 0;    // rows of the busiest rank over the mean of all ranks
  int64_t idle_experts = 0;     // (layer, expert) pairs that no row chose
};

class ExpertBalanceMeter {
 public:
  // Reports of all ranks, in rank order, with as many layers each.
  void update(std::span<const RankReport> ranks);
  const ExpertBalance& balance() const { return balance_; }

 private:
  std::vector<std::vector<uint64_t>> last_;    // by rank
  std::vector<std::vector<double>> recent_;    // by rank: what was added since, older ones less
  ExpertBalance balance_;
};

// Of this process.
uint64_t resident_bytes();

}  // namespace shoal
