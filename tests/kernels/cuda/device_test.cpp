// CudaDevice: what it refuses, and what it leaves behind.
#include <catch2/catch.hpp>
#include <cstring>
#include <future>
#include <numeric>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "tests/kernels/cuda/cuda_case.h"
#ifdef SHOAL_CUDA_EMULATED
#include "tests/emulated_cuda/control.h"
#endif

namespace shoal::test {
namespace {

// Holds up the device's stream until it is opened.
class Gate {
 public:
  explicit Gate(cudaStream_t stream) {
    SHOAL_CUDA_CHECK(cudaLaunchHostFunc(
        stream, [](void* gate) { static_cast<Gate*>(gate)->opened_.get_future().wait(); }, this));
  }
  ~Gate() { open(); }
  void open() {
    if (!open_) opened_.set_value();
    open_ = true;
  }

 private:
  std::promise<void> opened_;
  bool open_ = false;
};

std::vector<int32_t> numbers(size_t count, int32_t first) {
  std::vector<int32_t> values(count);
  std::iota(values.begin(), values.end(), first);
  return values;
}

TEST_CASE("the host waits for an event, not for what was issued behind it", "[cuda][device]") {
  CudaDevice& device = cuda_device();
  const std::vector<int32_t> values = numbers(1000, 7);
  const size_t bytes = values.size() * sizeof(int32_t);
  const Buffer memory = device.allocate(bytes);
  const HostBuffer host = device.allocate_host(bytes + 64);
  device.synchronize();
  Gate before(device.stream());
  device.copy_to_device(memory.data(), values.data(), bytes);
  device.copy_to_host_async(host, 64, memory.data(), bytes);
  const auto event = device.record();
  device.zero(memory.data(), bytes);
  Gate behind(device.stream());
  const auto last = device.record();
  CHECK_FALSE(event->done());
  before.open();
  event->wait();
  CHECK(event->done());
  CHECK_FALSE(last->done());
  CHECK(std::memcmp(host.data() + 64, values.data(), bytes) == 0);
  behind.open();
  last->wait();
  CHECK(last->done());
  CHECK_THROWS_AS(device.copy_to_host_async(host, 65, memory.data(), bytes), Bug);
}

TEST_CASE("work beside runs while the device is held up, and each waits for the other's events",
          "[cuda][device]") {
  CudaDevice& device = cuda_device();
  const std::vector<int32_t> first = numbers(100, 1), second = numbers(100, 1000);
  const size_t bytes = first.size() * sizeof(int32_t);
  const Buffer a = device.allocate(bytes), b = device.allocate(bytes), c = device.allocate(bytes);
  device.synchronize();
  device.copy_to_device(a.data(), first.data(), bytes);
  const auto filled = device.record();
  Gate gate(device.stream());
  std::vector<int32_t> seen(100);
  const cudaStream_t main = device.stream();
  const auto copied = device.beside(*filled, [&] {
    CHECK(device.stream() != main);
    device.copy_on_device(b.data(), a.data(), bytes);
    device.copy_to_host(seen.data(), b.data(), bytes);  // of this queue: the gate is closed
    device.copy_to_device(b.data(), second.data(), bytes);
  });
  CHECK(device.stream() == main);
  CHECK(seen == first);
  copied->wait();
  device.order_after(*copied);
  device.copy_on_device(c.data(), b.data(), bytes);
  const auto taken = device.record();
  // Beside again, but not before the device has taken what is overwritten.
  const auto zeroed = device.beside(*taken, [&] { device.zero(b.data(), bytes); });
  CHECK_FALSE(zeroed->done());
  gate.open();
  device.synchronize();  // both
  CHECK(zeroed->done());
  device.copy_to_host(seen.data(), c.data(), bytes);
  CHECK(seen == second);
  CHECK_THROWS_AS(device.beside(*taken, [&] { device.beside(*taken, [] {}); }), Bug);
  CHECK(device.stream() == main);
}

TEST_CASE("uploads wait for nothing and have taken their values when they return",
          "[cuda][device]") {
  CudaDevice& device = cuda_device();
  constexpr size_t kCount = 300, kPieces = 50;  // small tensors of some steps, odd addresses too
  const Buffer memory = device.allocate(kCount * kPieces * sizeof(int32_t));
  device.synchronize();
  Gate gate(device.stream());
  for (size_t i = 0; i < kPieces; ++i) {
    std::vector<int32_t> values = numbers(kCount, static_cast<int32_t>(i * kCount));
    device.copy_to_device(static_cast<int32_t*>(memory.data()) + i * kCount, values.data(),
                          kCount * sizeof(int32_t));
    std::fill(values.begin(), values.end(), -1);
  }
  CHECK_FALSE(device.record()->done());
  gate.open();
  std::vector<int32_t> got(kCount * kPieces);
  device.copy_to_host(got.data(), memory.data(), memory.bytes());
  CHECK(got == numbers(kCount * kPieces, 0));
}

TEST_CASE("a graph that is recorded takes no event and no copy to the host", "[cuda][device]") {
  CudaDevice& device = cuda_device();
  const Buffer memory = device.allocate(4);
  const HostBuffer host = device.allocate_host(4);
  CHECK_THROWS_AS(device.capture([&] { device.record(); }), Bug);
  CHECK_THROWS_AS(device.capture([&] { device.allocate_host(4); }), Bug);
  CHECK_THROWS_AS(device.capture([&] { device.copy_to_host_async(host, 0, memory.data(), 4); }),
                  Bug);
}

TEST_CASE("a capture that is lost leaves no error to the next launch", "[cuda][device]") {
  Random random{1};
  const HostTensor x = random.tensor(DType::kF32, {2, 16});
  OnDevice from(x), sum(x);
  CHECK_THROWS_AS(cuda_device().capture([&] {
    cudaStreamSynchronize(cuda_device().stream());  // not allowed here, and loses the capture
    throw_invalid("given up");
  }),
                  InvalidInput);
  CHECK_FALSE(cuda_device().capturing());
  cuda_ops().add(from, sum);
  cuda_device().synchronize();
}

#ifdef SHOAL_CUDA_EMULATED
TEST_CASE("a binary without kernels for the GPU is refused before the first launch",
          "[cuda][device]") {
  emulated::set_kernel_images(false);
  CHECK_THROWS_WITH(make_cuda_device(0), Catch::Contains("no kernels for GPU 0") &&
                                             Catch::Contains("-DCMAKE_CUDA_ARCHITECTURES=90"));
  CHECK_THROWS_AS(make_cuda_device(0), InvalidInput);
  emulated::set_kernel_images(true);
  CHECK(make_cuda_device(0)->arch() == 90);
}
#endif

}  // namespace
}  // namespace shoal::test
