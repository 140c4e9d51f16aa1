#include "kernels/base/device.h"

#include "kernels/base/error.h"

namespace shoal {
namespace {

class PastEvent final : public DeviceEvent {
 public:
  void wait() override {}
  bool done() override { return true; }
};

}  // namespace

void Device::copy_to_host_async(const HostBuffer& to, size_t offset, const void* device,
                                size_t bytes) {
  SHOAL_CHECK(offset <= to.bytes() && bytes <= to.bytes() - offset, "{} bytes at {} of {}", bytes,
              offset, to.bytes());
  copy_to_host(to.data() + offset, device, bytes);
}

void Device::copy_to_device_async(void* device, const HostBuffer& from, size_t offset,
                                  size_t bytes) {
  SHOAL_CHECK(offset <= from.bytes() && bytes <= from.bytes() - offset, "{} bytes at {} of {}",
              bytes, offset, from.bytes());
  copy_to_device(device, from.data() + offset, bytes);
}

HostBuffer Device::allocate_host(size_t bytes) {
  return HostBuffer(new std::byte[bytes], bytes, [](std::byte* data) { delete[] data; });
}

std::unique_ptr<DeviceEvent> Device::record() { return std::make_unique<PastEvent>(); }

std::unique_ptr<DeviceEvent> Device::beside(const DeviceEvent& after,
                                            const std::function<void()>& work) {
  work();
  return record();
}

}  // namespace shoal
