// Workspace and the CPU device's memory.
#include <catch2/catch.hpp>
#include <cstring>

#include "kernels/base/workspace.h"
#include "kernels/cpu/cpu_backend.h"

namespace shoal {
namespace {

uintptr_t address(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data); }

}  // namespace

TEST_CASE("workspace: tensors are aligned, apart, and reused after a scope", "[base]") {
  const std::unique_ptr<Device> device = make_cpu_device();
  Workspace workspace(*device, 4096);
  const Tensor a = workspace.tensor(DType::kF32, {3, 5});
  void* inner = nullptr;
  {
    Workspace::Scope scope(workspace);
    const Tensor b = workspace.tensor(DType::kBF16, {100});
    inner = b.data;
    CHECK(address(a) % 256 == 0);
    CHECK(address(b) % 256 == 0);
    CHECK(address(b) >= address(a) + 60);
  }
  CHECK(workspace.tensor(DType::kBF16, {100}).data == inner);
}

TEST_CASE("workspace: a tensor larger than a chunk gets a chunk, kept for the next step",
          "[base]") {
  const std::unique_ptr<Device> device = make_cpu_device();
  Workspace workspace(*device, 4096);
  workspace.tensor(DType::kF32, {1000});
  const Tensor big = workspace.tensor(DType::kF32, {5000});
  std::memset(big.data, 1, big.num_bytes());
  const size_t high = workspace.high_water_bytes();
  CHECK(high >= 24000);
  workspace.reset();
  workspace.tensor(DType::kF32, {1000});
  CHECK(workspace.tensor(DType::kF32, {5000}).data == big.data);
  CHECK(workspace.high_water_bytes() == high);
}

TEST_CASE("workspace: from_host copies, and no elements are fine", "[base]") {
  const std::unique_ptr<Device> device = make_cpu_device();
  Workspace workspace(*device, 4096);
  const int32_t ids[] = {7, 8, 9};
  const Tensor t = workspace.from_host(DType::kI32, ids, {3});
  CHECK(std::memcmp(t.data, ids, sizeof(ids)) == 0);
  CHECK(workspace.from_host(DType::kI32, nullptr, {0}).num_elements() == 0);
}

TEST_CASE("cpu device: every size is aligned and writable, huge ones on huge-page borders",
          "[base]") {
  const std::unique_ptr<Device> device = make_cpu_device();
  CHECK(device->name() == "cpu");
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{4097}, (size_t{2} << 20) - 1,
                             size_t{2} << 20, (size_t{5} << 20) + 3}) {
    const Buffer buffer = device->allocate(bytes);
    const auto at = reinterpret_cast<uintptr_t>(buffer.data());
    CHECK(at % (bytes >= (size_t{2} << 20) ? size_t{2} << 20 : 256) == 0);
    CHECK(buffer.bytes() == bytes);
    std::memset(buffer.data(), 1, bytes);
  }
  // Freed and mapped again many times: nothing is left behind that would run out.
  for (int i = 0; i < 20000; ++i) device->allocate(size_t{1} << 30);
}

TEST_CASE("cpu device: more memory than there is throws DeviceFault", "[base]") {
  const std::unique_ptr<Device> device = make_cpu_device();
  CHECK_THROWS_AS(device->allocate(size_t{1} << 60), DeviceFault);
  CHECK_THROWS_AS(device->allocate(SIZE_MAX), DeviceFault);
}

TEST_CASE("cpu device: a copy is there at the event behind it, and fits its memory", "[base]") {
  const std::unique_ptr<Device> device = make_cpu_device();
  const float values[] = {1, 2, 3};
  const HostBuffer host = device->allocate_host(16);
  device->copy_to_host_async(host, 4, values, sizeof(values));
  const std::unique_ptr<DeviceEvent> event = device->record();
  event->wait();
  CHECK(event->done());
  CHECK(std::memcmp(host.data() + 4, values, sizeof(values)) == 0);
  CHECK_THROWS_AS(device->copy_to_host_async(host, 5, values, sizeof(values)), Bug);
  CHECK_THROWS_AS(device->copy_to_host_async(host, 17, values, 0), Bug);
}

}  // namespace shoal
