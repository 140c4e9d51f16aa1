// MemoryLedger: what a Device has handed out, by what it is for. Every Buffer enters itself and strikes
// itself out, so nothing that came from Device::allocate() can be missing; what a library takes behind
// the Device's back is not here. runtime/memory plans the same uses ahead, and a test compares the two.
// Thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string_view>
#include <vector>

namespace shoal {

enum class MemoryUse : uint8_t {
  kWeights,
  kKvCache,
  kWorkspace,      // activations of a step
  kScratch,        // what verbs need between their kernels
  kSampler,
  kCommunication,  // buffers of the collectives
  kGraphs,         // inputs of recorded steps
  kOther
};
inline constexpr int kNumMemoryUses = static_cast<int>(MemoryUse::kOther) + 1;
std::string_view memory_use_name(MemoryUse use);

class MemoryLedger {
 public:
  void add(MemoryUse use, size_t bytes);
  void remove(MemoryUse use, size_t bytes);

  size_t current(MemoryUse use) const;
  size_t peak(MemoryUse use) const;
  size_t current_total() const;
  size_t peak_total() const;

  // From here on everything large is there: an allocation of `threshold` bytes or more is kept on record, and
  // those before are forgotten. SIZE_MAX: whatever comes is expected.
  void expect_no_more(size_t threshold);
  struct Late {
    MemoryUse use;
    size_t bytes;
  };
  std::vector<Late> late() const;  // the first 64

 private:
  mutable std::mutex mutex_;
  std::array<size_t, kNumMemoryUses> current_{}, peak_{};
  size_t total_ = 0, peak_total_ = 0;
  size_t threshold_ = SIZE_MAX;
  std::vector<Late> late_;
};

}  // namespace shoal
