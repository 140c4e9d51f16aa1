#include "runtime/engine/page_store.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// Timing makes the host wait twice, which costs a step that is run ahead of the hiding of the
// host's work.
constexpr uint64_t kTimedEvery = 8;

}  // namespace

PageStore::PageStore(Device& device, const PagedKvCache& cache, int32_t dp_rank, int32_t num_slots,
                     std::unique_ptr<KvCheckpoint> files)
    : device_(device),
      cache_(cache),
      dp_rank_(dp_rank),
      page_bytes_(static_cast<size_t>(cache.layout().page_bytes())),
      slots_(device.allocate_host(page_bytes_ * static_cast<size_t>(num_slots))),
      files_(std::move(files)) {}

size_t PageStore::slot_offset(int32_t slot) const {
  const size_t offset = static_cast<size_t>(slot) * page_bytes_;
  SHOAL_CHECK(slot >= 0 && offset + page_bytes_ <= slots_.bytes(), "slot {} of {}", slot,
              slots_.bytes() / page_bytes_);
  return offset;
}

void PageStore::settle(int32_t slot) {
  if (!unsettled_.contains(slot)) return;
  if (!outs_) outs_ = device_.record();
  outs_->wait();
  outs_.reset();
  unsettled_.clear();
}

void PageStore::copy(const PageCopy& copy) {
  if (!copy.to_host) settle(copy.slot);
  size_t offset = slot_offset(copy.slot);
  for (const PagedKvCache::Piece& piece : cache_.page(copy.page)) {
    const auto bytes = static_cast<size_t>(piece.bytes);
    if (copy.to_host) {
      device_.copy_to_host_async(slots_, offset, piece.data, bytes);
    } else {
      device_.copy_to_device(piece.data, slots_.data() + offset, bytes);
    }
    offset += bytes;
  }
  if (!copy.to_host) return;
  unsettled_.insert(copy.slot);
  outs_.reset();
}

void PageStore::copy_all(const StepPlan& plan) {
  using Clock = std::chrono::steady_clock;
  const auto count =
      std::ranges::count_if(plan.copies, [&](const PageCopy& c) { return mine(c.dp_rank); });
  if (count == 0) return;
  const bool timed = plans_with_copies_++ % kTimedEvery == 0;
  if (timed) device_.record()->wait();
  const auto begin = Clock::now();
  for (const PageCopy& c : plan.copies) {
    if (mine(c.dp_rank)) copy(c);
  }
  auto end = device_.record();
  if (timed) {
    end->wait();
    times_.pages += count;
    times_.seconds += std::chrono::duration<double>(Clock::now() - begin).count();
  }
  if (!unsettled_.empty()) outs_ = std::move(end);
}

void PageStore::begin_loads(const StepPlan& plan) {
  for (size_t i = 0; i < plan.files.size();) {
    const PageFile& first = plan.files[i];
    if (first.kind != PageFile::Kind::kLoad) {
      ++i;
      continue;
    }
    std::vector<KvCheckpoint::Load> pages;
    for (; i < plan.files.size() && plan.files[i].kind == PageFile::Kind::kLoad &&
           plan.files[i].ticket == first.ticket;
         ++i) {
      if (!mine(first.dp_rank)) continue;
      settle(plan.files[i].slot);
      pages.push_back({plan.files[i].key, slot(plan.files[i].slot)});
    }
    if (mine(first.dp_rank)) {
      files_->load(first.ticket, std::move(pages));
    } else {
      not_mine_.insert(first.ticket);
    }
  }
}

void PageStore::run(const StepPlan& plan) {
  SHOAL_CHECK(plan.files.empty() || files_ != nullptr, "a plan with files and no checkpoint");
  for (const PageFile& f : plan.files) {
    if (f.kind != PageFile::Kind::kSave || !mine(f.dp_rank)) continue;
    settle(f.slot);
    files_->save(f.key, slot(f.slot));
  }
  copy_all(plan);
  begin_loads(plan);
  for (const PageFile& f : plan.files) {
    if (f.kind == PageFile::Kind::kDrop && mine(f.dp_rank)) files_->drop(f.key);
  }
}

int64_t PageStore::loaded(uint64_t ticket) {
  not_mine_.erase(not_mine_.begin(), not_mine_.lower_bound(ticket));
  if (not_mine_.contains(ticket)) return StepRunner::kNotMine;
  return files_ == nullptr ? -1 : files_->loaded(ticket);
}

}  // namespace shoal
