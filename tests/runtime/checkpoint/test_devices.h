// Two devices: memory of the host, and memory that only the device's own copies may touch.
#pragma once

#include <cstdlib>
#include <cstring>
#include <set>

#include "kernels/base/device.h"
#include "kernels/base/error.h"

namespace shoal::test {

class HostDevice : public Device {
 public:
  std::string name() const override { return "host"; }
  bool host_memory() const override { return true; }
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
  bool host_memory() const override { return false; }
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
