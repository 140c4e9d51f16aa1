#include "emulated_cuda/context_switch.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SHOAL_EMULATED_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#ifdef SHOAL_EMULATED_ASSEMBLY
// Saves what the ABI makes the callee's: six registers, the SSE control word and the x87 one. Two orders
// of magnitude faster than swapcontext(), which makes two system calls.
extern "C" void shoal_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl shoal_switch_stack
.hidden shoal_switch_stack
.type shoal_switch_stack, @function
shoal_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  subq $8, %rsp
  stmxcsr (%rsp)
  fnstcw 4(%rsp)
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  ldmxcsr (%rsp)
  fldcw 4(%rsp)
  addq $8, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size shoal_switch_stack, .-shoal_switch_stack
)");
#endif

namespace shoal::emulated {
namespace {

#ifdef SHOAL_EMULATED_SANITIZED
constexpr size_t kStackBytes = 256 * 1024;  // red zones
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif
constexpr size_t kPage = 4096;

}  // namespace

Fiber::Fiber() {
#ifdef __SANITIZE_ADDRESS__
  pthread_attr_t attributes;
  void* address = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &address, &stack_bytes);
  pthread_attr_destroy(&attributes);
  stack = static_cast<std::byte*>(address);
#endif
#ifdef SHOAL_EMULATED_TSAN
  tsan = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(size_t index) : stack_bytes(kStackBytes) {
  void* region = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED) throw std::bad_alloc();
  mprotect(region, kPage, PROT_NONE);
  stack = static_cast<std::byte*>(region) + kPage;
  // Stacks lie a power of two apart; without the shift all their tops would share one set of the caches.
  top = stack + kStackBytes - index * 576 % 16384;
}

Fiber::~Fiber() {
  if (top == nullptr) return;
#ifdef SHOAL_EMULATED_TSAN
  if (tsan != nullptr) __tsan_destroy_fiber(tsan);
#endif
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(stack, stack_bytes);
#endif
  munmap(stack - kPage, kPage + stack_bytes);
}

void Fiber::prepare(void (*start)()) {
  entry = start;
  fake_stack = nullptr;
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(stack, stack_bytes);
#endif
#ifdef SHOAL_EMULATED_TSAN
  if (tsan != nullptr) __tsan_destroy_fiber(tsan);
  tsan = __tsan_create_fiber(0);
#endif
#ifdef SHOAL_EMULATED_ASSEMBLY
  // As shoal_switch_stack leaves it: control words, six registers, the address that `ret` goes to, which
  // lies at a multiple of 16 as the ABI wants of a call, and a null return address of the entry itself.
  auto* frame = reinterpret_cast<uint64_t*>(top) - 10;
  memset(frame, 0, 10 * sizeof(uint64_t));
  uint32_t mxcsr;
  uint16_t x87;
  asm volatile("stmxcsr %0" : "=m"(mxcsr));
  asm volatile("fnstcw %0" : "=m"(x87));
  frame[1] = mxcsr | static_cast<uint64_t>(x87) << 32;
  frame[8] = reinterpret_cast<uint64_t>(start);
  stack_pointer = frame + 1;
#else
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = stack_bytes;
  context.uc_link = nullptr;
  makecontext(&context, start, 0);
#endif
}

void Fiber::switch_to(Fiber& next) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fake_stack, next.stack, next.stack_bytes);
#endif
#ifdef SHOAL_EMULATED_TSAN
  __tsan_switch_to_fiber(next.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef SHOAL_EMULATED_ASSEMBLY
  shoal_switch_stack(&stack_pointer, next.stack_pointer);
#else
  swapcontext(&context, &next.context);
#endif
  fiber_entered(*this);
}

void fiber_entered(Fiber& self) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace shoal::emulated
