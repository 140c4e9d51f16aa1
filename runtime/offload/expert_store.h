// ExpertStore: the routed experts of a rank when its device cannot hold all of them. Each has a
// home:
//
//   device   multiplied there, all of a layer in one grouped product
//   host     in host memory (pinned): its rows are multiplied by the CPU, or it is copied to one
//            of two device slots and multiplied there, while the next one is on its way to the other
//   disk     in the checkpoint's file, read when it is needed into one of two places in host
//            memory, and from there on as one of the host. What the machine's page cache holds is
//            not read from the disk.
//
// What an expert is used for is counted, and between steps the hottest of a layer change places
// with the coldest that live better (end_step). A row's result does not depend on where its expert
// lives but for the rounding of the device that multiplies; on the CPU back end, where both are the
// CPU, not even in bits: a product's row depends on its own input alone, and rows are added in the
// order of a token's choices.
//
// The thread that drives the device calls. Layers refer to the store, which must outlive them.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/device.h"
#include "kernels/ops.h"
#include "runtime/checkpoint/checkpoint_source.h"
#include "runtime/offload/expert_placement.h"
#include "runtime/offload/offload_stats.h"
#include "runtime/offload/routed_experts.h"

namespace shoal {

struct OffloadConfig {
  OffloadMode mode = OffloadMode::kAuto;
  ExpertCounts counts;      // of this rank
  int64_t layers = 0;       // with experts
  uint64_t slot_bytes = 0;  // of the largest expert's image
  int64_t hidden = 0, inner = 0;
  Range experts;                    // of this rank
  double link_gigabytes_per_s = 0;  // from the host to the device: see stream_min_rows()
  int cpu_threads = 1;
};

class OffloadedExperts;

class ExpertStore {
 public:
  // All must outlive it. host, host_ops: of the CPU; on the CPU back end the same as the device's.
  ExpertStore(const OffloadConfig& config, CheckpointSource& source, Device& device, Device& host,
              Ops& host_ops);
  ~ExpertStore();

  // The layers with experts, in order: reads the next one's to their first homes. name:
  // "model.layers.3.mlp".
  std::unique_ptr<RoutedExperts> load_layer(const std::string& name);

  // After each step: queues the moves that are worth it, some kMoveBytesPerStep at most, beside
  // what the device does next.
  void end_step();
  // Counts from zero, and takes no use before this for heat: after warming up.
  void restart();
  const OffloadStats& stats() const { return stats_; }

 private:
  friend class OffloadedExperts;

  // A device slot that experts are streamed to in turn.
  struct Slot {
    Buffer memory;
    std::shared_ptr<DeviceEvent> free;  // its product has run
  };
  // A place in host memory that experts are read from files to.
  struct Place {
    HostBuffer memory;
    std::shared_ptr<DeviceEvent> free;  // copies from it have run
  };
  Slot& next_slot();
  Place& next_place();

  const OffloadConfig config_;
  CheckpointSource& source_;
  Device& device_;
  Device& host_;
  Ops& host_ops_;
  std::vector<OffloadedExperts*> layers_;
  std::array<Slot, 2> slots_;
  std::array<Place, 2> places_;
  size_t next_slot_ = 0, next_place_ = 0, next_move_ = 0;
  OffloadStats stats_;
};

}  // namespace shoal
