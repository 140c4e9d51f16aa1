#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <unordered_map>

#include "kernels/base/error.h"
#include "kernels/cpu/cpu_backend.h"

namespace shoal {
namespace {

constexpr size_t kAlignment = 256;  // four cache lines, as CUDA's allocator
constexpr size_t kHugePage = size_t{2} << 20;

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

class CpuDevice final : public Device {
 public:
  std::string name() const override { return "cpu"; }

  Buffer allocate(size_t bytes) override {
    if (bytes > SIZE_MAX - 2 * kHugePage) out_of_memory(bytes);
    if (bytes >= kHugePage) return Buffer(this, map_huge(bytes), bytes);
    void* data = std::aligned_alloc(kAlignment, round_up(bytes ? bytes : 1, kAlignment));
    if (data == nullptr) out_of_memory(bytes);
    return Buffer(this, data, bytes);
  }

  void copy_to_device(void* device, const void* host, size_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void copy_to_host(void* host, const void* device, size_t bytes) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }
  void copy_on_device(void* to, const void* from, size_t bytes) override {
    if (bytes > 0) std::memmove(to, from, bytes);
  }
  void upload(void* device, size_t bytes, size_t unit, const Fill& fill) override {
    if (bytes > 0) fill(static_cast<std::byte*>(device), 0, bytes);
  }
  void zero(void* device, size_t bytes) override {
    if (bytes > 0) std::memset(device, 0, bytes);
  }
  void synchronize() override {}

  std::pair<size_t, size_t> memory_info() const override {
    size_t available = size_t{4} << 30, total = available;  // where there is no /proc
    std::ifstream meminfo("/proc/meminfo");
    for (std::string key; meminfo >> key;) {
      size_t kib = 0;
      if (key == "MemTotal:" && meminfo >> kib) total = kib * 1024;
      if (key == "MemAvailable:" && meminfo >> kib) available = kib * 1024;
    }
    return {available, total};
  }

 protected:
  void deallocate(void* data) override {
    size_t mapped = 0;
    {
      std::lock_guard lock(mutex_);
      if (const auto it = mapped_.find(data); it != mapped_.end()) {
        mapped = it->second;
        mapped_.erase(it);
      }
    }
    if (mapped > 0) {
      munmap(data, mapped);
    } else {
      std::free(data);
    }
  }

 private:
  [[noreturn]] static void out_of_memory(size_t bytes) {
    throw DeviceFault(fmt::format("cpu: out of memory allocating {} bytes", bytes));
  }

  // Maps one huge page more than needed and gives back the ends, so that the memory begins on a
  // huge-page boundary: the kernel only uses huge pages for aligned 2 MiB.
  void* map_huge(size_t bytes) {
    const size_t size = round_up(bytes, kHugePage);
    void* raw = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) out_of_memory(bytes);
    const auto begin = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t aligned = round_up(begin, kHugePage);
    if (aligned > begin) munmap(raw, aligned - begin);
    const uintptr_t end = begin + size + kHugePage;
    if (end > aligned + size) munmap(reinterpret_cast<void*>(aligned + size), end - aligned - size);
    void* data = reinterpret_cast<void*>(aligned);
    madvise(data, size, MADV_HUGEPAGE);  // advice: without huge pages it is only slower
    std::lock_guard lock(mutex_);
    mapped_[data] = size;
    return data;
  }

  std::mutex mutex_;
  std::unordered_map<void*, size_t> mapped_;  // guarded by mutex_: address -> mapped bytes
};

}  // namespace

std::unique_ptr<Device> make_cpu_device() { return std::make_unique<CpuDevice>(); }

}  // namespace shoal
