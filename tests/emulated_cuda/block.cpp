#include "emulated_cuda/block.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "emulated_cuda/context_switch.h"
#include "emulated_cuda/device.h"
#include "emulated_cuda/state.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif
#ifdef SHOAL_EMULATED_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace shoal::emulated {

constinit thread_local Thread* current = nullptr;

namespace {

// The thread sanitizer takes what one fiber does for ordered, so that each CUDA thread needs its own.
#ifdef SHOAL_EMULATED_TSAN
constexpr bool kFiberPerThread = true;
void release(void* what) { __tsan_release(what); }
void acquire(void* what) { __tsan_acquire(what); }
#else
constexpr bool kFiberPerThread = false;
void release(void*) {}
void acquire(void*) {}
#endif

constexpr size_t kMaxSmem = 256 * 1024;
constexpr size_t kPage = 4096;
constexpr size_t kSignalStack = 64 * 1024;

// Threads in the order in which they came.
struct ThreadList {
  Thread *head = nullptr, *tail = nullptr;

  void push(Thread* thread) {
    thread->next = nullptr;
    (head == nullptr ? head : tail->next) = thread;
    tail = thread;
  }
  Thread* pop() {
    Thread* first = head;
    if (first != nullptr) head = first->next;
    return first;
  }
  void take_all(ThreadList& other) {
    if (other.head == nullptr) return;
    (head == nullptr ? head : tail->next) = other.head;
    tail = other.tail;
    other.head = nullptr;
  }
};

struct Meeting {
  unsigned mask = 0, arrived = 0;
  Combine combine = nullptr;
  const char* what = nullptr;
  ThreadList waiting;
};

struct Warp {
  unsigned lanes = 0;  // that exist
  void* operands[32] = {};
  // Each has a lane that waits there. Lanes of a part of the warp may meet while the others are already
  // at the next meeting of all, so that masks under way may overlap.
  Meeting meetings[32];
  int under_way = 0;

  // The one under way with this mask, or a free one.
  Meeting& meeting(unsigned mask) {
    Meeting* free = nullptr;
    int seen = 0;
    for (Meeting& each : meetings) {
      if (each.arrived == 0) {
        if (free == nullptr) free = &each;
      } else {
        if (each.mask == mask) return each;
        ++seen;
      }
      if (free != nullptr && seen == under_way) break;
    }
    return *free;
  }
};

// What runs the blocks on one OS thread. A fiber runs threads of the block one after another, and another
// fiber is taken only when its thread has to wait: a kernel without barriers needs no switch at all. A
// fiber that has to wait switches straight to the next one that can go on.
class Runner {
 public:
  Runner();
  ~Runner();
  void run(const Launch& launch, unsigned seed);

  int barrier(bool predicate, const char* what);
  void meet(unsigned mask, void* operand, Combine combine, const char* what);
  void yield();
  [[noreturn]] void fail(cudaError_t error, const std::string& what);
  void fiber_loop(Fiber& self);
  [[noreturn, maybe_unused]] void end_after_signal(const std::string& what);
  std::byte* landing_stack() const { return signal_stacks_ + 2 * kSignalStack; }

 private:
  void run_block(uint3 block);
  void run_thread(Fiber& self);
  void wait(ThreadList& list, const char* what, unsigned lanes);
  void switch_from(Fiber& self);
  Fiber& idle_fiber();
  KernelFault fault(cudaError_t error, const std::string& what) const;
  [[noreturn]] void fail_deadlock();

  const Launch* launch_ = nullptr;
  Fiber main_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<unsigned> order_;
  std::byte* smem_;  // kMaxSmem bytes between two guard pages
  std::byte* signal_stacks_;  // the handler's, and that of what comes after it
  // Of the block that runs.
  unsigned num_threads_ = 0, started_ = 0, ended_ = 0;
  unsigned spins_ = 0;
  ThreadList ready_;
  ThreadList at_barrier_;
  unsigned arrived_ = 0;
  int predicates_ = 0, barrier_result_ = 0;
  std::unique_ptr<KernelFault> fault_;
};

thread_local std::unique_ptr<Runner> runner;

// The fiber that has just been switched to for the first time.
thread_local Fiber* entering = nullptr;

void enter() {
  Fiber& self = *entering;
  fiber_entered(self);
  runner->fiber_loop(self);
}

// A bad access of a kernel is reported and ends the kernel, not the process. Where a sanitizer is on, its
// own report is better.
#if defined(__x86_64__) && !defined(SHOAL_EMULATED_SANITIZED)
constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction previous_actions[std::size(kSignals)];
thread_local int signal_number = 0;
thread_local void* signal_address = nullptr;

[[noreturn]] void land() {
  runner->end_after_signal(signal_number == SIGFPE
                               ? "integer division by zero"
                               : "access to " + describe_address(signal_address));
}

void on_signal(int signal, siginfo_t* info, void* context) {
  if (current == nullptr) {  // not a kernel's: as if this handler were not there, when it happens again
    const auto index = std::find(std::begin(kSignals), std::end(kSignals), signal) - kSignals;
    sigaction(signal, &previous_actions[index], nullptr);
    return;
  }
  signal_number = signal;
  signal_address = info->si_addr;
  // Returns into land(), outside the handler, on a stack that is no fiber's: theirs may be full.
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  registers[REG_RIP] = reinterpret_cast<greg_t>(land);
  registers[REG_RSP] = reinterpret_cast<greg_t>(runner->landing_stack() - 8);
}

// Before every grid, as test frameworks install handlers of their own for every test.
void catch_signals() {
  static std::mutex& mutex = *new std::mutex;
  const std::lock_guard guard(mutex);
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    struct sigaction action{};
    sigaction(kSignals[i], nullptr, &action);
    if (action.sa_sigaction == on_signal) continue;
    previous_actions[i] = action;
    action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(kSignals[i], &action, nullptr);
  }
}

void use_signal_stack(std::byte* stack) {
  stack_t alternate{};
  alternate.ss_sp = stack;
  alternate.ss_size = kSignalStack;
  alternate.ss_flags = stack == nullptr ? SS_DISABLE : 0;
  sigaltstack(&alternate, nullptr);
}
#else
void catch_signals() {}
void use_signal_stack(std::byte*) {}
#endif

Runner::Runner() {
  void* stacks = mmap(nullptr, 2 * kSignalStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) throw std::bad_alloc();
  signal_stacks_ = static_cast<std::byte*>(stacks);
  use_signal_stack(signal_stacks_);
  void* region = mmap(nullptr, kMaxSmem + 2 * kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED) throw std::bad_alloc();
  smem_ = static_cast<std::byte*>(region) + kPage;
  mprotect(region, kPage, PROT_NONE);
  mprotect(smem_ + kMaxSmem, kPage, PROT_NONE);
}

Runner::~Runner() {
  use_signal_stack(nullptr);
  munmap(signal_stacks_, 2 * kSignalStack);
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(smem_, kMaxSmem);  // whatever is mapped there next must not inherit it
#endif
  munmap(smem_ - kPage, kMaxSmem + 2 * kPage);
}

void Runner::run(const Launch& launch, unsigned seed) {
  catch_signals();
  launch_ = &launch;
  const dim3 grid = launch.grid, size = launch.block;
  num_threads_ = size.x * size.y * size.z;
  // Reads past its end meet the guard page.
  std::byte* smem = smem_ + kMaxSmem - (launch.dynamic_smem + 15) / 16 * 16;
#ifdef __SANITIZE_ADDRESS__
  ASAN_POISON_MEMORY_REGION(smem_, kMaxSmem);
  ASAN_UNPOISON_MEMORY_REGION(smem, launch.dynamic_smem);
#endif
  if (threads_.size() < num_threads_) threads_.resize(num_threads_);
  warps_.resize((num_threads_ + 31) / 32);
  for (unsigned i = 0; i < num_threads_; ++i) {
    Thread& thread = threads_[i];
    thread.thread_idx = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    thread.block_dim = size;
    thread.grid_dim = grid;
    thread.lane = i % 32;
    thread.warp = i / 32;
    thread.dynamic_smem = smem;
  }
  order_.resize(num_threads_);
  for (unsigned i = 0; i < num_threads_; ++i) order_[i] = i;
  if (seed != 0) std::shuffle(order_.begin(), order_.end(), std::mt19937(seed));
  const uint64_t blocks = uint64_t{1} * grid.x * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = seed % 2 == 1 ? blocks - 1 - i : i;
    memset(smem, 0xff, launch.dynamic_smem);
    run_block({static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
               static_cast<unsigned>(b / grid.x / grid.y)});
  }
}

void Runner::run_block(uint3 block) {
  for (unsigned i = 0; i < num_threads_; ++i) threads_[i].block_idx = block;
  for (size_t i = 0; i < warps_.size(); ++i) {
    const unsigned lanes = std::min<unsigned>(32, num_threads_ - static_cast<unsigned>(i) * 32);
    warps_[i].lanes = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  }
  started_ = ended_ = arrived_ = 0;
  predicates_ = 0;
  if (kFiberPerThread) {  // made here, so that none is ordered after another thread of the block
    while (fibers_.size() < num_threads_) fibers_.push_back(std::make_unique<Fiber>(fibers_.size()));
    idle_.clear();
    for (unsigned i = num_threads_; i-- > 0;) {
      fibers_[i]->prepare(enter);
      idle_.push_back(fibers_[i].get());
    }
  }
  Fiber& first = idle_fiber();
  entering = &first;
  main_.switch_to(first);
  current = nullptr;
  acquire(this);
  if (fault_ == nullptr) return;

  // The fibers of threads that still wait are forgotten where they are.
  const std::unique_ptr<KernelFault> fault = std::move(fault_);
  idle_.clear();
  for (const auto& fiber : fibers_) {
    fiber->prepare(enter);
    idle_.push_back(fiber.get());
  }
  ready_ = at_barrier_ = {};
  warps_.assign(warps_.size(), Warp());
  throw KernelFault(*fault);
}

Fiber& Runner::idle_fiber() {
  if (idle_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>(fibers_.size()));
    fibers_.back()->prepare(enter);
    idle_.push_back(fibers_.back().get());
  }
  Fiber* fiber = idle_.back();
  idle_.pop_back();
  return *fiber;
}

void Runner::fiber_loop(Fiber& self) {
  for (;;) {
    try {
      if (started_ < num_threads_) run_thread(self);
      if (ready_.head == nullptr && started_ < num_threads_ && !kFiberPerThread) continue;
      if (!kFiberPerThread) idle_.push_back(&self);
      switch_from(self);
      continue;
    } catch (const KernelFault& fault) {
      fault_ = std::make_unique<KernelFault>(fault);
    }
    release(this);
    self.switch_to(main_);  // which forgets this fiber's state, and that of all others
  }
}

void Runner::run_thread(Fiber& self) {
  Thread& thread = threads_[order_[started_++]];
  thread.fiber = &self;
  thread.waits_at = nullptr;
  thread.open_group = 0;
  thread.copies.clear();
  current = &thread;
  try {
    launch_->thread_body();
  } catch (const KernelFault&) {
    throw;
  } catch (const std::exception& e) {
    fail(cudaErrorLaunchFailure, std::string("exception: ") + e.what());
  }
  thread.fiber = nullptr;
  release(this);
  ++ended_;
}

// To what can go on: a thread that was waiting, a thread that has not started, or the end of the block.
void Runner::switch_from(Fiber& self) {
  if (Thread* next = ready_.pop()) {
    current = next;
    next->waits_at = nullptr;
    if (next->fiber != &self) self.switch_to(*next->fiber);
  } else if (started_ < num_threads_) {
    Fiber& next = idle_fiber();
    entering = &next;
    self.switch_to(next);
  } else if (ended_ == num_threads_) {
    self.switch_to(main_);
  } else {
    fail_deadlock();
  }
}

void Runner::wait(ThreadList& list, const char* what, unsigned lanes) {
  Thread* self = current;
  self->waits_at = what;
  self->waits_with = lanes;
  list.push(self);
  release(this);  // for the case that it is never resumed
  switch_from(*self->fiber);
}

int Runner::barrier(bool predicate, const char* what) {
  predicates_ += predicate ? 1 : 0;
  release(&at_barrier_);
  if (++arrived_ == num_threads_) {
    arrived_ = 0;
    barrier_result_ = predicates_;
    predicates_ = 0;
    ready_.take_all(at_barrier_);
  } else {
    wait(at_barrier_, what, 0);
  }
  acquire(&at_barrier_);
  return barrier_result_;  // stays until all threads have come to the next barrier
}

void Runner::meet(unsigned mask, void* operand, Combine combine, const char* what) {
  const unsigned lane = current->lane;
  Warp& warp = warps_[current->warp];
  if ((mask >> lane & 1) == 0 || (mask & ~warp.lanes) != 0) [[unlikely]] {
    fail(cudaErrorLaunchFailure,
         fmt::format("{} of lanes {:08x} by lane {} of a warp of lanes {:08x}: the mask must name the "
                     "caller, and no lane that does not exist",
                     what, mask, lane, warp.lanes));
  }
  Meeting& meeting = warp.meeting(mask);
  if (meeting.arrived == 0) {
    ++warp.under_way;
    meeting.mask = mask;
    meeting.combine = combine;
    meeting.what = what;
  } else if (meeting.combine != combine) [[unlikely]] {
    fail(cudaErrorLaunchFailure,
         fmt::format("{} of lanes {:08x}, of which lanes {:08x} wait at {}", what, mask, meeting.arrived,
                     meeting.what));
  }
  warp.operands[lane] = operand;
  meeting.arrived |= 1u << lane;
  release(&meeting);
  if (meeting.arrived == mask) {
    acquire(&meeting);
    combine(warp.operands, mask);
    release(&meeting);
    meeting.arrived = 0;
    --warp.under_way;
    ready_.take_all(meeting.waiting);
  } else {
    wait(meeting.waiting, what, mask);
    acquire(&meeting);
  }
}

void Runner::yield() {
  // What it waits for may be another OS thread's; so it is when several threads do nothing but spin.
  if (ready_.head == nullptr || ++spins_ % 8 == 0) std::this_thread::yield();
  Thread* self = current;
  ready_.push(self);
  // Those who have not started go first, else two threads that spin would keep the others from it.
  if (started_ < num_threads_) {
    Fiber& next = idle_fiber();
    entering = &next;
    self->fiber->switch_to(next);
  } else {
    switch_from(*self->fiber);
  }
}

KernelFault Runner::fault(cudaError_t error, const std::string& what) const {
  std::string where;
  if (current != nullptr) {
    const uint3 t = current->thread_idx, b = current->block_idx;
    where = fmt::format(" in block ({},{},{}) thread ({},{},{})", b.x, b.y, b.z, t.x, t.y, t.z);
  }
  return KernelFault(error,
                     fmt::format("kernel {}{}: {}", function_name(launch_->kernel), where, what));
}

void Runner::fail(cudaError_t error, const std::string& what) { throw fault(error, what); }

void Runner::end_after_signal(const std::string& what) {
  fault_ = std::make_unique<KernelFault>(fault(cudaErrorIllegalAddress, what));
  current->fiber->switch_to(main_);  // which forgets all fibers
  std::terminate();
}

void Runner::fail_deadlock() {
  std::string text = fmt::format("deadlock: {} of {} threads have not ended", num_threads_ - ended_,
                                 num_threads_);
  for (size_t w = 0; w < warps_.size(); ++w) {
    std::vector<std::pair<std::string, unsigned>> places;  // and the lanes that wait there
    unsigned ended = 0;
    for (unsigned i = static_cast<unsigned>(w) * 32; i < std::min<unsigned>(num_threads_, (w + 1) * 32);
         ++i) {
      const Thread& thread = threads_[i];
      if (thread.fiber == nullptr) {
        ended |= 1u << thread.lane;
        continue;
      }
      std::string place = thread.waits_at == nullptr ? "nothing" : thread.waits_at;
      if (thread.waits_with != 0) place += fmt::format(" of lanes {:08x}", thread.waits_with);
      const auto known = std::find_if(places.begin(), places.end(),
                                      [&](const auto& p) { return p.first == place; });
      if (known != places.end()) {
        known->second |= 1u << thread.lane;
      } else {
        places.emplace_back(place, 1u << thread.lane);
      }
    }
    for (const auto& [place, lanes] : places) {
      text += fmt::format("\n  warp {}: lanes {:08x} wait at {}", w, lanes, place);
    }
    if (!places.empty() && ended != 0) {
      text += fmt::format("\n  warp {}: lanes {:08x} have ended", w, ended);
    }
  }
  const uint3 b = threads_[0].block_idx;
  current = nullptr;
  fail(cudaErrorLaunchFailure, fmt::format("block ({},{},{}): {}", b.x, b.y, b.z, text));
}

}  // namespace

void fail(cudaError_t error, const std::string& what) { runner->fail(error, what); }

void fail_misaligned(const void* p, size_t alignment) {
  fail(cudaErrorMisalignedAddress, fmt::format("access of {} bytes at {}, which is no multiple of them",
                                               alignment, p));
}

void meet(unsigned mask, void* operand, Combine combine, const char* what) {
  runner->meet(mask, operand, combine, what);
}

int barrier(bool predicate, const char* what) { return runner->barrier(predicate, what); }

void yield() { runner->yield(); }

void combine_ballot(void* const* operands, unsigned mask) {
  unsigned votes = 0;
  for_lanes(mask, [&](int lane) {
    if (static_cast<Vote*>(operands[lane])->predicate) votes |= 1u << lane;
  });
  for_lanes(mask, [&](int lane) { static_cast<Vote*>(operands[lane])->result = votes; });
}

void combine_match(void* const* operands, unsigned mask) {
  for_lanes(mask, [&](int lane) {
    auto* mine = static_cast<Match*>(operands[lane]);
    for_lanes(mask, [&](int other) {
      if (static_cast<Match*>(operands[other])->value == mine->value) mine->result |= 1u << other;
    });
  });
}

void run_grid(const Launch& launch, unsigned thread_order_seed) {
  if (runner == nullptr) runner = std::make_unique<Runner>();
  runner->run(launch, thread_order_seed);
}

}  // namespace shoal::emulated
