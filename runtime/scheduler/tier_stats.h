// TierStats: pages that went between the tiers of the KV cache, since start.
#pragma once

#include <cstdint>

namespace shoal {

struct TierStats {
  int64_t swapped_out = 0, swapped_in = 0;  // of preempted sequences, to the host and back
  int64_t spilled = 0, restored = 0;        // of prompts, to the host and back
  int64_t saved = 0, loaded = 0;            // of prompts, to files and back
  TierStats& operator+=(const TierStats& other) {
    swapped_out += other.swapped_out;
    swapped_in += other.swapped_in;
    spilled += other.spilled;
    restored += other.restored;
    saved += other.saved;
    loaded += other.loaded;
    return *this;
  }
};

}  // namespace shoal
