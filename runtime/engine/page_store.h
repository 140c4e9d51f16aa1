// PageStore: one rank's tiers below its KV pages: slots of (pinned) host memory and a KvCheckpoint.
// Carries out what plans say of pages; which page, slot and file holds what is the scheduler's
// knowledge alone.
//
// Copies are queued in the device's order, so a plan's come before its step and after the step
// before. Memory of a slot that is still being copied to is not looked at: the host waits for that
// copy where it has to (a save, a load or a copy back, of the same slot, right behind it).
#pragma once

#include <cstdint>
#include <memory>
#include <set>

#include "kernels/base/device.h"
#include "runtime/cache/kv_checkpoint.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/engine/step_runner.h"
#include "runtime/scheduler/step_plan.h"

namespace shoal {

class PageStore {
 public:
  // Pages of other DP ranks than `dp_rank` are not this rank's; -1: all are (no DP attention).
  // `files` may be null. `device` and `cache` must outlive it.
  PageStore(Device& device, const PagedKvCache& cache, int32_t dp_rank, int32_t num_slots,
            std::unique_ptr<KvCheckpoint> files);

  void run(const StepPlan& plan);
  int64_t loaded(uint64_t ticket);  // see StepRunner
  // Of every eighth plan with copies, for which the host waits.
  StepRunner::CopyTimes copy_times() const { return times_; }
  KvCheckpoint* files() const { return files_.get(); }
  size_t host_bytes() const { return slots_.bytes(); }

 private:
  bool mine(int32_t dp_rank) const { return dp_rank_ < 0 || dp_rank == dp_rank_; }
  std::byte* slot(int32_t slot) const { return slots_.data() + slot_offset(slot); }
  size_t slot_offset(int32_t slot) const;
  void settle(int32_t slot);
  void copy(const PageCopy& copy);
  void copy_all(const StepPlan& plan);
  void begin_loads(const StepPlan& plan);

  Device& device_;
  const PagedKvCache& cache_;
  const int32_t dp_rank_;
  const size_t page_bytes_;
  HostBuffer slots_;
  std::set<int32_t> unsettled_;        // slots that are being copied to
  std::unique_ptr<DeviceEvent> outs_;  // the end of those copies; null: not recorded yet
  std::set<uint64_t> not_mine_;        // tickets
  uint64_t plans_with_copies_ = 0;
  StepRunner::CopyTimes times_;
  std::unique_ptr<KvCheckpoint> files_;  // its thread writes to slots: ends before them
};

}  // namespace shoal
