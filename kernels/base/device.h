// Device: memory and ordering of one accelerator (or of the CPU cores bound to a rank).
// One thread drives a Device; its calls are ordered as issued (a stream). A device may run them
// later than they return; what is not pure virtual here is right for one that runs each call before
// it returns.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "kernels/base/memory_ledger.h"

namespace shoal {

class Buffer;

// Device work that was recorded once and runs again at a fraction of what issuing it costs. It
// reads and writes the same memory each time. Must end before its Device.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  virtual void launch() = 0;  // ordered like any other call to the Device
};

// A point in a Device's order. Must end before its Device; the thread that drives the Device calls.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
  // Returns when everything that was issued before record() has run; what was issued after it goes
  // on. Throws DeviceFault, as synchronize() does.
  virtual void wait() = 0;
  // Whether wait() would return at once. Throws as well.
  virtual bool done() = 0;
};

// Host memory that a device copies to and from while the host goes on ("pinned"). Must outlive those
// copies, and end before its Device. Making and freeing one is slow and may wait: keep it over
// steps.
class HostBuffer {
 public:
  using Free = std::function<void(std::byte*)>;
  HostBuffer() = default;
  HostBuffer(std::byte* data, size_t bytes, Free free)
      : data_(data, std::move(free)), bytes_(bytes) {}
  std::byte* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<std::byte, Free> data_;
  size_t bytes_ = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // "cpu", "cuda:0 NVIDIA H100 80GB HBM3 (sm_90, 79 GiB)"
  // Aligned to 256 bytes, uninitialised. Throws DeviceFault naming the size when out of memory.
  virtual Buffer allocate(size_t bytes) = 0;
  // Host <-> device; the host memory may be reused when the call returns. copy_to_device does not
  // wait for the device, unless so many bytes are still on their way that its staging memory is
  // full (kernels/cuda: 16 MiB); copy_to_host waits for everything that was issued (see beside).
  virtual void copy_to_device(void* device, const void* host, size_t bytes) = 0;
  virtual void copy_to_host(void* host, const void* device, size_t bytes) = 0;
  // Puts the copy into `to`, from byte `offset` on, in order with all else and does not wait: the
  // bytes are there when an event that was recorded later has been waited for (or is done()).
  virtual void copy_to_host_async(const HostBuffer& to, size_t offset, const void* device,
                                  size_t bytes);
  // The other way: `from` must not change before such an event.
  virtual void copy_to_device_async(void* device, const HostBuffer& from, size_t offset,
                                    size_t bytes);
  virtual HostBuffer allocate_host(size_t bytes);
  // The point that the device's order has reached. Not while a graph is recorded.
  virtual std::unique_ptr<DeviceEvent> record();
  // A second queue beside the device's own order, for what waits for other ranks. What `work` issues
  // goes there: it runs after `after` and after what went there before, while the device goes on with
  // what is issued outside. Inside, copy_to_host waits for that queue alone. Returns the queue's end;
  // memory that `work` uses may be used again behind order_after(that) only. Verbs inside may take no
  // scratch memory of their back end: gather_rows, copy, add and combine.
  virtual std::unique_ptr<DeviceEvent> beside(const DeviceEvent& after,
                                              const std::function<void()>& work);
  // What is issued from here on runs after `event`, for which the host does not wait.
  virtual void order_after(const DeviceEvent& event) {}
  virtual void copy_on_device(void* to, const void* from, size_t bytes) = 0;
  // Brings `bytes` that `fill` makes, without a copy more than the device needs: fill writes the
  // bytes [offset, offset + count) to the memory it is given, which the device reads (or is the
  // device's own). Pieces are whole multiples of `unit` and come in order; one is filled while
  // another is on its way.
  using Fill = std::function<void(std::byte* memory, size_t offset, size_t count)>;
  virtual void upload(void* device, size_t bytes, size_t unit, const Fill& fill) = 0;
  virtual void zero(void* device, size_t bytes) = 0;
  virtual void synchronize() = 0;
  // Records the work that `work` issues to this device, without running it. While it records,
  // `work` may neither copy from or to the host nor allocate. Null on devices that gain nothing by
  // it.
  virtual std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work) {
    return nullptr;
  }
  // {bytes free now, bytes in all} of the memory that allocate() takes from.
  virtual std::pair<size_t, size_t> memory_info() const = 0;

  // Every Buffer of this device, by use.
  MemoryLedger& ledger() { return ledger_; }
  // What the next allocations are for: see MemoryScope.
  MemoryUse memory_use() const { return memory_use_; }

 protected:
  friend class Buffer;
  friend class MemoryScope;
  virtual void deallocate(void* data) = 0;

 private:
  MemoryLedger ledger_;
  MemoryUse memory_use_ = MemoryUse::kOther;
};

// What is allocated while it lives is for `use`. On the thread that drives the device.
class MemoryScope {
 public:
  MemoryScope(Device& device, MemoryUse use) : device_(device), before_(device.memory_use_) {
    device.memory_use_ = use;
  }
  ~MemoryScope() { device_.memory_use_ = before_; }
  MemoryScope(const MemoryScope&) = delete;

 private:
  Device& device_;
  MemoryUse before_;
};

// Owns device memory. The Device must outlive it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device* device, void* data, size_t bytes)
      : device_(device), data_(data), bytes_(bytes), use_(device->memory_use()) {
    device_->ledger().add(use_, bytes_);
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(use_, other.use_);
    return *this;
  }
  ~Buffer() {
    if (data_ == nullptr) return;
    device_->ledger().remove(use_, bytes_);
    device_->deallocate(data_);
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
  MemoryUse use_ = MemoryUse::kOther;
};

}  // namespace shoal
