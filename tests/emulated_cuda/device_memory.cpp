// Device and pinned memory, copies, and memory shared between processes.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>

#include <fmt/format.h>

#include "emulated_cuda/context_switch.h"
#include "emulated_cuda/state.h"
#include "emulated_cuda/stream_work.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace emu = shoal::emulated;
using emu::answer;
using emu::explain;

namespace shoal::emulated {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;  // as cudaMalloc's
constexpr int kPoison = 0xff;       // NaN in float32, bfloat16, half and e4m3
// What lies around an allocation: whoever reads it gets NaN, and it must not change.
constexpr int kCanary = kPoison;
// A model's one planned allocation may be most of the device: what is poisoned becomes resident.
constexpr size_t kMaxPoison = size_t{64} << 20;

// Mapped pages, and behind them one that cannot be touched. The data ends less than kAlignment bytes
// before it; all that is mapped and not data holds kCanary.
struct Allocation {
  std::byte* data = nullptr;
  size_t bytes = 0;
  std::byte* pages = nullptr;
  size_t mapped = 0;  // without the guard page
  off_t offset = 0;   // in the device's file
  int device = 0;
  bool foreign = false;  // another process's
};

struct DeviceFile {
  int descriptor = -1;
  off_t end = 0;
  size_t used = 0;
};

struct Memory {
  std::mutex mutex;
  std::map<const std::byte*, Allocation> allocations;  // by data
  std::map<const std::byte*, size_t> pinned;
  std::map<int, DeviceFile> files;
};
Memory& memory() {
  static Memory& all = *new Memory;
  return all;
}

// What cudaIpcMemHandle_t holds.
struct SharedHandle {
  int64_t magic, process, descriptor, offset, mapped, lead, bytes, device;
};
constexpr int64_t kMagic = 0x6c616f6853;
static_assert(sizeof(SharedHandle) <= sizeof(cudaIpcMemHandle_t));

// REQUIRES for the rest: memory().mutex is held.

const Allocation* find_allocation(const void* p) {
  const auto& all = memory().allocations;
  auto next = all.upper_bound(static_cast<const std::byte*>(p));
  if (next == all.begin()) return nullptr;
  const Allocation& candidate = std::prev(next)->second;
  return p < candidate.data + candidate.bytes ? &candidate : nullptr;
}

bool is_pinned(const void* p) {
  const auto* address = static_cast<const std::byte*>(p);
  auto next = memory().pinned.upper_bound(address);
  if (next == memory().pinned.begin()) return false;
  --next;
  return address < next->first + next->second;
}

void poison_slack(const Allocation& a, bool poison) {
#ifdef __SANITIZE_ADDRESS__
  const std::byte* end = a.data + a.bytes;
  if (poison) {
    ASAN_POISON_MEMORY_REGION(a.pages, static_cast<size_t>(a.data - a.pages));
    ASAN_POISON_MEMORY_REGION(end, static_cast<size_t>(a.pages + a.mapped - end));
  } else {
    ASAN_UNPOISON_MEMORY_REGION(a.pages, a.mapped);
  }
#endif
}

// Maps `a.mapped` bytes of a file, with the guard page behind; false if that fails.
bool map_pages(Allocation& a, int descriptor) {
  void* region = mmap(nullptr, a.mapped + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1, 0);
  if (region == MAP_FAILED) return false;
  if (mmap(region, a.mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor, a.offset) ==
      MAP_FAILED) {
    munmap(region, a.mapped + kPage);
    return false;
  }
  a.pages = static_cast<std::byte*>(region);
  return true;
}

std::string damage(const Allocation& a) {
  if (a.foreign) return "";
  poison_slack(a, false);
  std::string text;
  for (const std::byte* p = a.pages; p < a.pages + a.mapped && text.empty(); ++p) {
    if (p == a.data) p += a.bytes;
    if (p < a.pages + a.mapped && *p != std::byte(kCanary)) {
      text = p < a.data
                 ? fmt::format("written {} bytes before the {} bytes of device memory at {}", a.data - p,
                               a.bytes, fmt::ptr(a.data))
                 : fmt::format("written {} bytes past the end of the {} bytes of device memory at {}",
                               p - a.data - static_cast<std::ptrdiff_t>(a.bytes), a.bytes,
                               fmt::ptr(a.data));
    }
  }
  poison_slack(a, true);
  return text;
}

cudaError_t allocate(void** result, size_t bytes) {
  const std::lock_guard guard(memory().mutex);
  const int index = current_device();
  DeviceFile& file = memory().files[index];
  if (file.descriptor < 0) file.descriptor = memfd_create("shoal_emulated_gpu", MFD_CLOEXEC);
  Allocation a;
  a.bytes = bytes;
  a.device = index;
  if (bytes > memory_limit() - file.used) return cudaErrorMemoryAllocation;
  const size_t data_bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  a.mapped = (data_bytes + kPage - 1) / kPage * kPage;
  a.offset = file.end;
  if (a.mapped > memory_limit() - file.used ||
      ftruncate(file.descriptor, file.end + static_cast<off_t>(a.mapped)) != 0 ||
      !map_pages(a, file.descriptor)) {
    return cudaErrorMemoryAllocation;
  }
  file.end += static_cast<off_t>(a.mapped);
  file.used += a.mapped;
  a.data = a.pages + a.mapped - data_bytes;
  memset(a.pages, kCanary, static_cast<size_t>(a.data - a.pages));
  memset(a.data, kPoison, std::min(bytes, kMaxPoison));
  memset(a.data + bytes, kCanary, data_bytes - bytes);
  poison_slack(a, true);
  *result = a.data;
  memory().allocations[a.data] = a;
  return cudaSuccess;
}

void release(const Allocation& a) {
  poison_slack(a, false);
  munmap(a.pages, a.mapped + kPage);
  if (!a.foreign) {
    DeviceFile& file = memory().files[a.device];
    file.used -= a.mapped;
    fallocate(file.descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, a.offset,
              static_cast<off_t>(a.mapped));
  }
  memory().allocations.erase(a.data);
}

}  // namespace

bool is_device_memory(const void* p, size_t bytes) {
  const std::lock_guard guard(memory().mutex);
  const Allocation* a = find_allocation(p);
  return a != nullptr && bytes <= static_cast<size_t>(a->data + a->bytes - static_cast<const std::byte*>(p));
}

std::string damaged_canaries(int index) {
  const std::lock_guard guard(memory().mutex);
  for (const auto& [data, allocation] : memory().allocations) {
    if (allocation.device != index) continue;
    std::string text = damage(allocation);
    if (!text.empty()) return text;
  }
  return "";
}

std::string describe_address(const void* p) {
  const auto* address = static_cast<const std::byte*>(p);
  const std::lock_guard guard(memory().mutex);
  for (const auto& [data, a] : memory().allocations) {
    if (address >= a.pages && address < a.pages + a.mapped + kPage) {
      return fmt::format("{}, {} bytes from the start of {} bytes of device memory", p, address - a.data,
                         a.bytes);
    }
  }
  return fmt::format("{}, no device memory", p);
}

namespace {

// A copy as the stream will make it. `host_staged`: the source's bytes as they are now.
cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream,
                 bool async) {
  if (bytes == 0) return cudaSuccess;
  if (kind == cudaMemcpyDefault) {
    const bool up = is_device_memory(to, 1), down = is_device_memory(from, 1);
    kind = up ? (down ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
              : (down ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
  }
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  for (const auto& [p, device_side, name] :
       {std::tuple{static_cast<const void*>(to), to_device, "to"}, {from, from_device, "from"}}) {
    if (device_side ? !is_device_memory(p, bytes) : is_device_memory(p, 1)) {
      return explain(cudaErrorInvalidValue,
                     fmt::format("copy of {} bytes {} {}, which {} device memory of that size", bytes,
                                 name, p, device_side ? "is no" : "is"));
    }
  }
  bool from_pinned, to_pinned;
  {
    const std::lock_guard guard(memory().mutex);
    from_pinned = is_pinned(from);
    to_pinned = is_pinned(to);
  }
  // What is pageable is staged when the call is made; pinned memory is read when the stream comes to it.
  const bool stage = !from_device && !from_pinned, wait = !async || (!to_device && !to_pinned);
  if (stage || wait) {
    if (const cudaError_t error = unsafe_call(); error != cudaSuccess) return error;
  }
  cudaError_t error;
  if (stage) {
    const auto* start = static_cast<const std::byte*>(from);
    auto staged = std::make_shared<std::vector<std::byte>>(start, start + bytes);
    error = enqueue(stream, [=] { memcpy(to, staged->data(), bytes); });
  } else {
    error = enqueue(stream, [=] { memmove(to, from, bytes); });
  }
  if (error != cudaSuccess || !wait) return error;
  return synchronize(*find_stream(stream));
}

cudaError_t set(void* p, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (!is_device_memory(p, bytes)) {
    return explain(cudaErrorInvalidValue,
                   fmt::format("{} bytes to be set at {}, which is no device memory of that size", bytes, p));
  }
  return enqueue(stream, [=] { memset(p, value, bytes); });
}

}  // namespace
}  // namespace shoal::emulated

cudaError_t cudaMalloc(void** result, size_t bytes) {
  if (const cudaError_t error = emu::unsafe_call(); error != cudaSuccess) return answer(error);
  if (const cudaError_t fault = emu::device(emu::current_device()).fault; fault != cudaSuccess) {
    return answer(fault);
  }
  if (result == nullptr) return answer(cudaErrorInvalidValue);
  *result = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (emu::allocation_fails()) return answer(cudaErrorMemoryAllocation);
  return answer(emu::allocate(result, bytes));
}

cudaError_t cudaFree(void* p) {
  if (p == nullptr) return cudaSuccess;
  if (const cudaError_t error = emu::unsafe_call(); error != cudaSuccess) return answer(error);
  int index;
  {
    const std::lock_guard guard(emu::memory().mutex);
    const auto found = emu::memory().allocations.find(static_cast<std::byte*>(p));
    if (found == emu::memory().allocations.end() || found->second.foreign) {
      return answer(cudaErrorInvalidValue);
    }
    index = found->second.device;
  }
  emu::synchronize_streams(index);  // the real one waits too
  const std::lock_guard guard(emu::memory().mutex);
  const std::string damage = emu::damage(emu::memory().allocations[static_cast<std::byte*>(p)]);
  if (!damage.empty()) emu::fault_device(index, cudaErrorIllegalAddress, damage);
  emu::release(emu::Allocation(emu::memory().allocations[static_cast<std::byte*>(p)]));
  return answer(emu::device(index).fault);
}

cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  const std::lock_guard guard(emu::memory().mutex);
  *total = emu::memory_limit();
  *available = *total - emu::memory().files[emu::current_device()].used;
  return answer(emu::device(emu::current_device()).fault);
}

cudaError_t cudaHostAlloc(void** result, size_t bytes, unsigned) {
  if (const cudaError_t error = emu::unsafe_call(); error != cudaSuccess) return answer(error);
  *result = nullptr;
  if (bytes == 0) return cudaSuccess;
  *result = aligned_alloc(emu::kPage, (bytes + emu::kPage - 1) / emu::kPage * emu::kPage);
  if (*result == nullptr) return answer(cudaErrorMemoryAllocation);
  memset(*result, emu::kPoison, std::min(bytes, emu::kMaxPoison));
  const std::lock_guard guard(emu::memory().mutex);
  emu::memory().pinned[static_cast<std::byte*>(*result)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** result, size_t bytes) { return cudaHostAlloc(result, bytes, 0); }

cudaError_t cudaFreeHost(void* p) {
  if (p == nullptr) return cudaSuccess;
  for (int i = 0; i < emu::device_count(); ++i) emu::synchronize_streams(i);
  const std::lock_guard guard(emu::memory().mutex);
  if (emu::memory().pinned.erase(static_cast<std::byte*>(p)) == 0) return answer(cudaErrorInvalidValue);
  free(p);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void* p, size_t bytes, unsigned) {
  const std::lock_guard guard(emu::memory().mutex);
  if (emu::is_pinned(p)) return answer(cudaErrorHostMemoryAlreadyRegistered);
  emu::memory().pinned[static_cast<std::byte*>(p)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* p) {
  const std::lock_guard guard(emu::memory().mutex);
  const size_t erased = emu::memory().pinned.erase(static_cast<std::byte*>(p));
  return answer(erased == 0 ? cudaErrorHostMemoryNotRegistered : cudaSuccess);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  const std::lock_guard guard(emu::memory().mutex);
  const emu::Allocation* a = emu::find_allocation(p);
  *attributes = {};
  attributes->type = a != nullptr          ? cudaMemoryTypeDevice
                     : emu::is_pinned(p) ? cudaMemoryTypeHost
                                         : cudaMemoryTypeUnregistered;
  attributes->device = a != nullptr ? a->device : emu::current_device();
  attributes->devicePointer = a != nullptr || emu::is_pinned(p) ? const_cast<void*>(p) : nullptr;
  attributes->hostPointer = a == nullptr ? const_cast<void*>(p) : nullptr;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return answer(emu::copy(to, from, bytes, kind, stream, true));
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return answer(emu::copy(to, from, bytes, kind, nullptr, false));
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return answer(emu::copy(to, from, bytes, cudaMemcpyDeviceToDevice, stream, true));
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  return answer(emu::set(p, value, bytes, stream));
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) { return answer(emu::set(p, value, bytes, nullptr)); }

// ---- Between processes -----------------------------------------------------------------------------

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* p) {
  const std::lock_guard guard(emu::memory().mutex);
  const emu::Allocation* a = emu::find_allocation(p);
  if (a == nullptr || a->foreign) return answer(cudaErrorInvalidValue);
  const emu::SharedHandle shared{emu::kMagic, getpid(), emu::memory().files[a->device].descriptor,
                                 a->offset, static_cast<int64_t>(a->mapped), a->data - a->pages,
                                 static_cast<int64_t>(a->bytes), a->device};
  *handle = {};
  memcpy(handle, &shared, sizeof(shared));
  return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void** result, cudaIpcMemHandle_t handle, unsigned) {
  emu::SharedHandle shared;
  memcpy(&shared, &handle, sizeof(shared));
  if (shared.magic != emu::kMagic) return answer(cudaErrorInvalidValue);
  if (shared.process == getpid()) return answer(cudaErrorDeviceUninitialized);
  const std::string path = fmt::format("/proc/{}/fd/{}", shared.process, shared.descriptor);
  const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return answer(explain(cudaErrorMapBufferObjectFailed, "cannot open " + path));
  emu::Allocation a;
  a.bytes = static_cast<size_t>(shared.bytes);
  a.mapped = static_cast<size_t>(shared.mapped);
  a.offset = shared.offset;
  a.device = emu::current_device();
  a.foreign = true;
  const bool mapped = emu::map_pages(a, descriptor);
  close(descriptor);
  if (!mapped) return answer(cudaErrorMapBufferObjectFailed);
  a.data = a.pages + shared.lead;
  const std::lock_guard guard(emu::memory().mutex);
  emu::poison_slack(a, true);
  emu::memory().allocations[a.data] = a;
  *result = a.data;
  return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void* p) {
  emu::synchronize_streams(emu::current_device());
  const std::lock_guard guard(emu::memory().mutex);
  const auto found = emu::memory().allocations.find(static_cast<std::byte*>(p));
  if (found == emu::memory().allocations.end() || !found->second.foreign) {
    return answer(cudaErrorInvalidValue);
  }
  emu::release(emu::Allocation(found->second));
  return cudaSuccess;
}
