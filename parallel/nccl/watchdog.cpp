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

std::string layer_name(int32_t layer) {
  return layer < 0 ? "outside the layers" : fmt::format("layer {}", layer);
}

}  // namespace

Watchdog::Watchdog(CudaDevice& device, int rank, int size, std::chrono::milliseconds time_limit,
                   Hooks hooks, std::chrono::milliseconds grace)
    : device_(device),
      rank_(rank),
      size_(size),
      time_limit_(time_limit),
      grace_(grace),
      hooks_(std::move(hooks)) {
  void* word = nullptr;
  SHOAL_CUDA_CHECK(
      cudaHostAlloc(&word, sizeof(uint32_t), cudaHostAllocMapped | cudaHostAllocPortable));
  progress_ = static_cast<uint32_t*>(word);
  *progress_ = 0;
  thread_ = std::thread([this] { watch(); });
  guard_thread_ = std::thread([this] { guard(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
  {
    const std::lock_guard lock(mutex_);
    guard_ending_ = true;
  }
  changed_.notify_all();
  guard_thread_.join();
  for (const Entry& entry : entries_) cudaEventDestroy(entry.ended);
  for (cudaEvent_t event : spare_events_) cudaEventDestroy(event);
  cudaFreeHost(progress_);
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
    if (!entries_.empty())
      reason += fmt::format("; under way here: {}", describe(entries_.front()));
  }
  trip(reason);
}

void Watchdog::fail(const std::string& what) {
  trip(what);
  check();
  throw DeviceFault(what);
}

cudaEvent_t Watchdog::take_event() {
  cudaEvent_t event = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (!spare_events_.empty()) {
      event = spare_events_.back();
      spare_events_.pop_back();
      return event;
    }
  }
  // Without the lock: should the driver wait for a GPU that hangs, the other thread still looks.
  SHOAL_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return event;
}

template <typename Call>
auto Watchdog::guarded(const Call& call) {
  {
    const std::lock_guard lock(mutex_);
    away_since_ = Clock::now();
  }
  auto result = call();
  const std::lock_guard lock(mutex_);
  away_since_ = {};
  return result;
}

std::string Watchdog::look() {
  std::unique_lock lock(mutex_);
  while (!entries_.empty()) {
    const cudaEvent_t ended = entries_.front().ended;  // only this thread takes entries out
    lock.unlock();
    const cudaError_t state = guarded([&] { return cudaEventQuery(ended); });
    lock.lock();
    Entry& oldest = entries_.front();
    if (state == cudaErrorNotReady) break;
    if (state != cudaSuccess) {
      cudaGetLastError();
      return fmt::format("{} failed: {}", describe(oldest), cudaGetErrorString(state));
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
  return fmt::format("{} has not ended after {:.1f} s: another rank is late or gone",
                     describe(oldest), std::chrono::duration<double>(waited).count());
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
      const ncclResult_t error = guarded(hooks_.async_error);
      if (error != ncclSuccess && error != ncclInProgress) {
        const std::lock_guard relock(mutex_);
        reason = fmt::format("{}: NCCL reports {}",
                             entries_.empty() ? fmt::format("rank {} of {}", rank_, size_)
                                              : describe(entries_.front()),
                             ncclGetErrorString(error));
      }
    }
    if (!reason.empty()) {
      guarded([&] {
        trip(reason);
        return true;
      });
    }
    lock.lock();
    if (!entries_.empty()) changed_.wait_for(lock, pause, [&] { return ending_; });
  }
  // The abort must have freed the stream; the owner then unwinds and ends this thread.
  const std::string fault = fault_;
  const auto deadline = Clock::now() + grace_;
  while (!changed_.wait_for(lock, pause, [&] { return ending_; })) {
    bool freed = entries_.empty();
    if (!freed) {
      const cudaEvent_t last = entries_.back().ended;
      lock.unlock();
      freed = guarded([&] { return cudaEventQuery(last) != cudaErrorNotReady; });
      lock.lock();
    }
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

void Watchdog::guard() {
  // A look may rightly last as long as a collective, as long as the abort has to free the stream.
  const auto patience = time_limit_ + grace_;
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, patience / 8, [&] { return guard_ending_; })) {
    if (away_since_ == Clock::time_point{} || Clock::now() - away_since_ < patience) continue;
    const std::string what = !fault_.empty() ? fault_
                             : entries_.empty()
                                 ? fmt::format("rank {} of {}", rank_, size_)
                                 : fmt::format("{} has not ended: another rank is late or gone",
                                               describe(entries_.front()));
    lock.unlock();
    hooks_.last_resort(what + "; the driver does not answer");
    return;
  }
}

std::string Watchdog::describe(const Entry& entry) const {
  const uint32_t reached = __atomic_load_n(progress_, __ATOMIC_RELAXED);
  if (!entry.graph || reached == 0 || reached > recorded_.size()) return entry.what;
  return fmt::format("{}, at {},", entry.what, recorded_[reached - 1]);
}

void Watchdog::note(std::string what, bool graph) {
  Entry entry{std::move(what), Clock::now(), graph, take_event()};
  SHOAL_CUDA_CHECK(cudaEventRecord(entry.ended, device_.stream()));
  bool was_idle = false;
  {
    const std::lock_guard lock(mutex_);
    was_idle = entries_.empty();
    entries_.push_back(std::move(entry));
  }
  if (was_idle) changed_.notify_all();  // the guard waits for it as well
}

void Watchdog::note_graph(Position position) {
  check();
  note(fmt::format("rank {} of {}: a recorded graph (collective {}, step {})", rank_, size_,
                   next_number_++, position.step),
       true);
}

Watchdog::Scope::Scope(Watchdog& watchdog, const char* name, int64_t bytes, Position position,
                       Mark mark)
    : watchdog_(watchdog),
      name_(name),
      bytes_(bytes),
      position_(position),
      number_(watchdog.next_number_++) {
  watchdog_.check();
  if (!watchdog_.device_.capturing()) return;
  {
    const std::lock_guard lock(watchdog_.mutex_);
    watchdog_.recorded_.push_back(
        fmt::format("{} of {} bytes ({})", name_, bytes_, layer_name(position_.layer)));
    number_in_graph_ = static_cast<uint32_t>(watchdog_.recorded_.size());
  }
  if (mark == Mark::kKernelBefore) {
    launch_mark(watchdog_.progress_, number_in_graph_, watchdog_.device_.stream());
  }
}

std::string Watchdog::Scope::description() const {
  return fmt::format("rank {} of {}: {} of {} bytes (collective {}, step {}, {})", watchdog_.rank_,
                     watchdog_.size_, name_, bytes_, number_, position_.step,
                     layer_name(position_.layer));
}

Watchdog::Scope::~Scope() {
  if (watchdog_.device_.capturing()) return;
  try {
    watchdog_.note(description(), false);
  } catch (const DeviceFault& fault) {
    watchdog_.trip(fault.what());  // the next call throws it
  }
}

}  // namespace shoal
