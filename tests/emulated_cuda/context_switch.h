// context_switch.h: fibers, the flows of control that CUDA threads run on. A fiber belongs to the OS
// thread that made it.
#pragma once

#include <cstddef>

// Define SHOAL_EMULATED_UCONTEXT to try what other processors get.
#if defined(__x86_64__) && !defined(SHOAL_EMULATED_UCONTEXT)
#define SHOAL_EMULATED_ASSEMBLY 1
#else
#include <ucontext.h>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
// SHOAL_EMULATED_TSAN comes from CMakeLists.txt: the files that see it are themselves not instrumented.
#if defined(__SANITIZE_ADDRESS__) || defined(SHOAL_EMULATED_TSAN)
#define SHOAL_EMULATED_SANITIZED 1
#endif

namespace shoal::emulated {

struct Fiber {
  // The OS thread's own flow: has no stack of ours, and is never started.
  Fiber();
  // A stack with a guard page below it. `index` spreads the stacks' tops over the cache's sets.
  explicit Fiber(size_t index);
  ~Fiber();
  Fiber(const Fiber&) = delete;

  // Makes the next switch to it begin entry(), which never returns; what it was doing is forgotten.
  void prepare(void (*entry)());
  // Goes on where `next` left off; returns when something switches back here.
  void switch_to(Fiber& next);

  std::byte* stack = nullptr;  // lowest usable address
  size_t stack_bytes = 0;
  std::byte* top = nullptr;
  void (*entry)() = nullptr;
#ifdef SHOAL_EMULATED_ASSEMBLY
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  void* fake_stack = nullptr;  // the address sanitizer's
  void* tsan = nullptr;        // the thread sanitizer's
};

// Called first thing by an entry: tells the address sanitizer that the switch is over.
void fiber_entered(Fiber& self);

}  // namespace shoal::emulated
