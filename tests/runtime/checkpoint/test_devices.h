// Two devices: memory of the host, and memory that only the device's own copies may touch.
#pragma once

#include <cstdlib>
#include <cstring>
#include <set>
#include <vector>

#include "kernels/base/device.h"
#include "kernels/base/error.h"

namespace shoal::test {

class HostDevice : public Device {
 public:
  std::string name() const override { return "host"; }
  Buffer allocate(size_t bytes) override {
    ++allocations;
    return Buffer(this, std::aligned_alloc(256, (bytes + 255) / 256 * 256), bytes);
  }
  void copy_to_device(void* device, const void* host, size_t bytes) override {
    std::memcpy(device, host, bytes);
  }
  void copy_to_host(void* host, const void* device, size_t bytes) override {
    std::memcpy(host, device, bytes);
  }
  void copy_on_device(void* to, const void* from, size_t bytes) override {
    std::memmove(to, from, bytes);
  }
  void upload(void* device, size_t bytes, size_t unit, const Fill& fill) override {
    if (bytes > 0) fill(static_cast<std::byte*>(device), 0, bytes);
  }
  void zero(void* device, size_t bytes) override { std::memset(device, 0, bytes); }
  void synchronize() override {}
  std::pair<size_t, size_t> memory_info() const override { return {0, 0}; }
  int allocations = 0;

 protected:
  void deallocate(void* data) override { std::free(data); }
};

// Addresses are off by kOffset: code that wrote to one itself would crash or be seen by ASan.
class RemoteDevice : public HostDevice {
 public:
  Buffer allocate(size_t bytes) override {
    void* data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    return Buffer(this, static_cast<std::byte*>(data) + kOffset, bytes);
  }
  void copy_to_device(void* device, const void* host, size_t bytes) override {
    ++copies;
    std::memcpy(static_cast<std::byte*>(device) - kOffset, host, bytes);
  }
  void copy_to_host(void* host, const void* device, size_t bytes) override {
    std::memcpy(host, static_cast<const std::byte*>(device) - kOffset, bytes);
  }
  void copy_on_device(void* to, const void* from, size_t bytes) override {
    std::memmove(static_cast<std::byte*>(to) - kOffset,
                 static_cast<const std::byte*>(from) - kOffset, bytes);
  }
  // In pieces of a few rows, so that what fills them has to mind the offset.
  void upload(void* device, size_t bytes, size_t unit, const Fill& fill) override {
    const size_t piece = 3 * unit;
    for (size_t done = 0; done < bytes; done += piece) {
      std::vector<std::byte> memory(std::min(piece, bytes - done));
      fill(memory.data(), done, memory.size());
      copy_to_device(static_cast<std::byte*>(device) + done, memory.data(), memory.size());
    }
  }
  void zero(void* device, size_t bytes) override {
    std::memset(static_cast<std::byte*>(device) - kOffset, 0, bytes);
  }
  int copies = 0;

 protected:
  void deallocate(void* data) override { std::free(static_cast<std::byte*>(data) - kOffset); }

 private:
  static constexpr size_t kOffset = size_t{1} << 46;
};

}  // namespace shoal::test
