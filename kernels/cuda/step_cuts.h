// StepCuts: how attention is cut in the step under way (Ops::begin_step). All layers of a model cut a batch
// alike, so the first one's cut serves the others: a step launches one scheduler (split_kv.cu) instead of
// one a layer, some microseconds each.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/base/workspace.h"

namespace shoal::gpu {

class StepCuts {
 public:
  // What a cut follows from: whose contents, and which shapes.
  struct Key {
    const void *query_start = nullptr, *context_len = nullptr;
    int32_t num_seqs = 0, heads = 0, tile_rows = 0, key_block = 0, target = 0, min_blocks = 0;
    int64_t max_items = 0, max_combines = 0;
    bool operator==(const Key&) const = default;
  };
  struct Cut {
    Key key;
    Tensor items, combines, counts;
  };

  explicit StepCuts(Device& device) : memory_(device, size_t{1} << 20, MemoryUse::kScratch) {}

  void begin() {
    active_ = true;
    cuts_.clear();
    memory_.reset();
  }
  void end() { active_ = false; }
  bool active() const { return active_; }

  // Null when this step has none such yet.
  const Cut* find(const Key& key) const {
    const auto at = std::find_if(cuts_.begin(), cuts_.end(),
                                 [&](const Cut& cut) { return cut.key == key; });
    return active_ && at != cuts_.end() ? &*at : nullptr;
  }
  void keep(Cut cut) { cuts_.push_back(cut); }
  // Of the cuts that are kept: a verb's scratch is gone when the verb ends.
  Workspace& memory() { return memory_; }

 private:
  bool active_ = false;
  Workspace memory_;
  std::vector<Cut> cuts_;
};

}  // namespace shoal::gpu
