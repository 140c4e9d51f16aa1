#include "kernels/base/memory_ledger.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace shoal {

std::string_view memory_use_name(MemoryUse use) {
  switch (use) {
    case MemoryUse::kWeights: return "weights";
    case MemoryUse::kKvCache: return "KV cache";
    case MemoryUse::kWorkspace: return "activations";
    case MemoryUse::kScratch: return "kernel scratch";
    case MemoryUse::kSampler: return "sampler";
    case MemoryUse::kCommunication: return "communication";
    case MemoryUse::kGraphs: return "graphs";
    case MemoryUse::kOther: return "other";
  }
  SHOAL_CHECK(false, "memory use {}", static_cast<int>(use));
}

void MemoryLedger::add(MemoryUse use, size_t bytes) {
  constexpr size_t kMostLate = 64;
  const std::lock_guard lock(mutex_);
  const auto i = static_cast<size_t>(use);
  current_[i] += bytes;
  peak_[i] = std::max(peak_[i], current_[i]);
  total_ += bytes;
  peak_total_ = std::max(peak_total_, total_);
  if (bytes >= threshold_ && late_.size() < kMostLate) late_.push_back({use, bytes});
}

void MemoryLedger::remove(MemoryUse use, size_t bytes) {
  const std::lock_guard lock(mutex_);
  current_[static_cast<size_t>(use)] -= bytes;
  total_ -= bytes;
}

size_t MemoryLedger::current(MemoryUse use) const {
  const std::lock_guard lock(mutex_);
  return current_[static_cast<size_t>(use)];
}

size_t MemoryLedger::peak(MemoryUse use) const {
  const std::lock_guard lock(mutex_);
  return peak_[static_cast<size_t>(use)];
}

size_t MemoryLedger::current_total() const {
  const std::lock_guard lock(mutex_);
  return total_;
}

size_t MemoryLedger::peak_total() const {
  const std::lock_guard lock(mutex_);
  return peak_total_;
}

void MemoryLedger::expect_no_more(size_t threshold) {
  const std::lock_guard lock(mutex_);
  threshold_ = threshold;
  late_.clear();
}

std::vector<MemoryLedger::Late> MemoryLedger::late() const {
  const std::lock_guard lock(mutex_);
  return late_;
}

}  // namespace shoal
