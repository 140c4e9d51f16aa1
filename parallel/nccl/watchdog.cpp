#include "parallel/nccl/watchdog.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "kernels/cuda/cuda_check.h"

namespace shoal {
namespace {

// Often enough that a report is late by a small part of the limit; an event query costs 1 us.
std::chrono::milliseconds pause_for(std::chrono::milliseconds time_limit) {
  using std::chrono::milliseconds;
  return std::clamp(time_limit / 20, milliseconds(1), milliseconds(50));
}

}  // namespace

Watchdog::Watchdog(CudaDevice& device, int rank, int size, std::chrono::milliseconds time_limit,
                   Hooks hooks)
    : device_(device), rank_(rank), size_(size), time_limit_(time_limit), hooks_(std::move(hooks)) {
  thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
  for (const Entry& entry : entries_) cudaEventDestroy(entry.ended);
  for (cudaEvent_t event : spare_events_) cudaEventDestroy(event);
}

void Watchdog::check() const {
  const std::lock_guard lock(mutex_);
  if (!fault_.empty()) throw DeviceFault(fault_);
}

void Watchdog::trip(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    if (!fault_.empty()) return;
    fault_ = reason;
  }
  spdlog::error("{}", reason);
  hooks_.abort();
  changed_.notify_all();
}

void Watchdog::peer_lost(const std::string& what) {
  std::string reason = fmt::format("rank {} of {}: {}", rank_, size_, what);
  {
    const std::lock_guard lock(mutex_);
    if (!entries_.empty()) reason += fmt::format("; under way here: {}", entries_.front().what);
  }
  trip(reason);
}

void Watchdog::fail(const std::string& what) {
  trip(what);
  check();
  throw DeviceFault(what);
}

cudaEvent_t Watchdog::take_event() {
  const std::lock_guard lock(mutex_);
  cudaEvent_t event = nullptr;
  if (spare_events_.empty()) {
    SHOAL_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  } else {
    event = spare_events_.back();
    spare_events_.pop_back();
  }
  return event;
}

std::string Watchdog::look() {
  const std::lock_guard lock(mutex_);
  while (!entries_.empty()) {
    Entry& oldest = entries_.front();
    const cudaError_t state = cudaEventQuery(oldest.ended);
    if (state == cudaErrorNotReady) break;
    if (state != cudaSuccess) {
      cudaGetLastError();
      return fmt::format("{} failed: {}", oldest.what, cudaGetErrorString(state));
    }
    spare_events_.push_back(oldest.ended);
    entries_.pop_front();
    free_since_ = Clock::now();
  }
  if (entries_.empty()) return "";
  const Entry& oldest = entries_.front();
  // What was issued early waits its turn: its own time begins when the one before it ended.
  const auto waited = Clock::now() - std::max(oldest.issued, free_since_);
  if (waited <= time_limit_) return "";
  return fmt::format("{} has not ended after {:.1f} s: another rank is late or gone", oldest.what,
                     std::chrono::duration<double>(waited).count());
}

void Watchdog::watch() {
  cudaSetDevice(device_.index());
  const auto pause = pause_for(time_limit_);
  std::unique_lock lock(mutex_);
  while (fault_.empty()) {
    changed_.wait(lock, [&] { return ending_ || !entries_.empty() || !fault_.empty(); });
    if (ending_) return;
    if (!fault_.empty()) break;
    lock.unlock();
    std::string reason = look();
    if (reason.empty()) {
      const ncclResult_t error = hooks_.async_error();
      if (error != ncclSuccess && error != ncclInProgress) {
        const std::lock_guard relock(mutex_);
        reason = fmt::format("{}: NCCL reports {}",
                             entries_.empty() ? fmt::format("rank {} of {}", rank_, size_)
                                              : entries_.front().what,
                             ncclGetErrorString(error));
      }
    }
    if (!reason.empty()) trip(reason);
    lock.lock();
    if (!entries_.empty()) changed_.wait_for(lock, pause, [&] { return ending_; });
  }
  // The abort must have freed the stream; the owner then unwinds and ends this thread.
  const std::string fault = fault_;
  const auto deadline = Clock::now() + kGrace;
  while (!changed_.wait_for(lock, pause, [&] { return ending_; })) {
    const bool freed = entries_.empty() || cudaEventQuery(entries_.back().ended) != cudaErrorNotReady;
    if (freed) {
      changed_.wait(lock, [&] { return ending_; });
      return;
    }
    if (Clock::now() < deadline) continue;
    lock.unlock();
    hooks_.last_resort(fault + "; the GPU does not react to the abort");
    return;
  }
}

Watchdog::Scope::Scope(Watchdog& watchdog, std::string name, int64_t bytes, Position position)
    : watchdog_(watchdog),
      name_(std::move(name)),
      bytes_(bytes),
      position_(position),
      number_(watchdog.next_number_++) {
  watchdog_.check();
}

std::string Watchdog::Scope::description() const {
  const std::string layer =
      position_.layer < 0 ? "outside the layers" : fmt::format("layer {}", position_.layer);
  return fmt::format("rank {} of {}: {} of {} bytes (collective {}, step {}, {})", watchdog_.rank_,
                     watchdog_.size_, name_, bytes_, number_, position_.step, layer);
}

Watchdog::Scope::~Scope() {
  if (watchdog_.device_.capturing()) return;
  try {
    Entry entry{description(), Clock::now(), watchdog_.take_event()};
    SHOAL_CUDA_CHECK(cudaEventRecord(entry.ended, watchdog_.device_.stream()));
    bool was_idle = false;
    {
      const std::lock_guard lock(watchdog_.mutex_);
      was_idle = watchdog_.entries_.empty();
      watchdog_.entries_.push_back(std::move(entry));
    }
    if (was_idle) watchdog_.changed_.notify_one();
  } catch (const DeviceFault& fault) {
    watchdog_.trip(fault.what());  // the next call throws it
  }
}

}  // namespace shoal
