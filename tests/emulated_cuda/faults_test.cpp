// What the emulation finds in kernels and in their launches.
#include "emulated_cuda/test_support.h"

#include <unistd.h>

#ifdef __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SHOAL_TEST_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SHOAL_TEST_SANITIZED 1
#endif

namespace shoal::emulated {

std::string reported(const std::function<void()>& body) {
  fflush(stderr);
  const int saved = dup(STDERR_FILENO);
  FILE* file = tmpfile();
  REQUIRE(file != nullptr);
  dup2(fileno(file), STDERR_FILENO);
  body();
  fflush(stderr);
  dup2(saved, STDERR_FILENO);
  close(saved);
  std::string text(static_cast<size_t>(lseek(fileno(file), 0, SEEK_END)), '\0');
  const ssize_t size = pread(fileno(file), text.data(), text.size(), 0);
  fclose(file);
  REQUIRE(size == static_cast<ssize_t>(text.size()));
  return text;
}

namespace {

using namespace gpu;
using Catch::Matchers::Contains;

template <typename... Params, typename... Args>
cudaError_t run(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem, const Args&... args) {
  try {
    launch(kernel, grid, block, smem, nullptr, args...);
  } catch (const DeviceFault&) {  // the kernel has failed already
  }
  return cudaDeviceSynchronize();
}

__global__ void nothing() {}

// ---- Launches --------------------------------------------------------------------------------------

cudaError_t launched(dim3 grid, dim3 block, size_t smem, cudaStream_t stream = nullptr) {
  const cudaError_t error = launch_kernel(reinterpret_cast<const void*>(&nothing), grid, block, smem,
                                          stream, [] {});
  CHECK(cudaGetLastError() == error);
  return error;
}

TEST_CASE("emulated: launches beyond a limit are refused as by the real runtime") {
  const auto* kernel = reinterpret_cast<const void*>(&nothing);
  reported([&] {
    CHECK(launched(1, 1024, kUnaskedSmem) == cudaSuccess);
    CHECK(launched(dim3(1, 65535, 1), 1, 0) == cudaSuccess);
    CHECK(launched(1, 1025, 0) == cudaErrorInvalidConfiguration);
    CHECK(launched(1, dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration);
    CHECK(launched(0, 1, 0) == cudaErrorInvalidConfiguration);
    CHECK(launched(1, 0, 0) == cudaErrorInvalidConfiguration);
    CHECK(launched(dim3(1, 65536, 1), 1, 0) == cudaErrorInvalidConfiguration);
    CHECK(launched(dim3(1, 1, 65536), 1, 0) == cudaErrorInvalidConfiguration);
    CHECK(launched(1, 1, kUnaskedSmem + 1) == cudaErrorInvalidValue);
    const auto ask = [&](int bytes) {
      const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      CHECK(cudaGetLastError() == error);
      return error;
    };
    CHECK(ask(227 * 1024 + 1) == cudaErrorInvalidValue);
    CHECK(ask(227 * 1024) == cudaSuccess);
    CHECK(launched(1, 1, 227 * 1024) == cudaSuccess);
    CHECK(launched(1, 1, 227 * 1024 + 1) == cudaErrorInvalidValue);
    CHECK(ask(0) == cudaSuccess);
    CHECK(launched(1, 1, 0, reinterpret_cast<cudaStream_t>(&kernel)) == cudaErrorInvalidResourceHandle);
    {
      const Stream stream;
      cudaSetDevice(1);
      CHECK(launched(1, 1, 0, stream) == cudaErrorInvalidResourceHandle);
      cudaSetDevice(0);
    }
    CHECK_THROWS_AS(launch(nothing, 1, 1025, 0, nullptr), DeviceFault);
  });
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
}

// ---- Deadlocks -------------------------------------------------------------------------------------

__global__ void some_lanes_return() {
  if (threadIdx.x % 32 >= 20) return;
  warp_sum(1);
}
__global__ void half_at_the_barrier() {
  if (threadIdx.x < 32) __syncthreads();
  __shfl_sync(kFullMask, 1, 0);
}
__global__ void different_collectives() {
  if (threadIdx.x < 16) {
    __shfl_sync(kFullMask, 1, 0);
  } else {
    __ballot_sync(kFullMask, 1);
  }
}
__global__ void foreign_mask() { __ballot_sync(0x2u, 1); }

TEST_CASE("emulated: a deadlock is reported with who waits where, and is a sticky error") {
  const Reset at_end;
  const auto report_of = [](void (*kernel)(), dim3 block) {
    std::string report = reported([&] { CHECK(run(kernel, 2, block, 0) == cudaErrorLaunchFailure); });
    CHECK(cudaGetLastError() == cudaErrorLaunchFailure);
    CHECK(cudaGetLastError() == cudaErrorLaunchFailure);  // sticky
    void* memory = nullptr;
    CHECK(cudaMalloc(&memory, 4) == cudaErrorLaunchFailure);
    reset();
    CHECK(cudaGetLastError() == cudaSuccess);
    return report;
  };
  std::string report = report_of(some_lanes_return, 64);
  CHECK_THAT(report, Contains("some_lanes_return"));
  CHECK_THAT(report, Contains("block (0,0,0): deadlock: 40 of 64 threads have not ended"));
  CHECK_THAT(report, Contains("warp 1: lanes 000fffff wait at warp_sum of lanes ffffffff"));
  CHECK_THAT(report, Contains("warp 1: lanes fff00000 have ended"));
  report = report_of(half_at_the_barrier, 64);
  CHECK_THAT(report, Contains("warp 0: lanes ffffffff wait at __syncthreads"));
  CHECK_THAT(report, !Contains("warp 1"));
  CHECK_THAT(report_of(different_collectives, 32), Contains("__ballot_sync of lanes ffffffff, of which lanes 0000ffff wait at __shfl_sync"));
  CHECK_THAT(report_of(foreign_mask, 32), Contains("__ballot_sync of lanes 00000002 by lane 0"));
  CHECK_THAT(report_of(some_lanes_return, 16), Contains("no lane that does not exist"));
  CHECK(run(nothing, 1, 64, 0) == cudaSuccess);  // the fibers are sound again
}

// ---- Bad accesses ----------------------------------------------------------------------------------

__global__ void throws() {
  if (blockIdx.x == 3 && threadIdx.x == 5) throw std::runtime_error("five");
}
__global__ void loads_16(const float* p) { load_16(p + 1); }
__global__ void copies_16(const float* p) {
  SHOAL_DYN_SMEM(float, smem);
  cp_async_16(smem + 2, p);
}
__global__ void loads_matrix() {
  SHOAL_DYN_SMEM(char, smem);
  uint32_t out[4];
  ldmatrix_x4(out, smem + 8);
}

TEST_CASE("emulated: exceptions and misaligned accesses of a kernel name block and thread") {
  const Reset at_end;
  std::string report = reported([] { CHECK(run(throws, 5, 8, 0) == cudaErrorLaunchFailure); });
  CHECK_THAT(report, Contains("throws") && Contains("block (3,0,0) thread (5,0,0): exception: five"));
  reset();
  DeviceVector<float> memory(64);
  const std::vector<std::function<cudaError_t()>> misaligned = {
      [&] { return run(loads_16, 1, 1, 0, memory.data()); },
      [&] { return run(copies_16, 1, 1, 32, memory.data()); },
      [&] { return run(loads_matrix, 1, 32, 64); }};
  for (const auto& kernel : misaligned) {
    report = reported([&] { CHECK(kernel() == cudaErrorMisalignedAddress); });
    CHECK_THAT(report, Contains("access of 16 bytes at"));
    reset();
  }
}

__global__ void writes(int* p, int64_t index) { p[index] = 1; }

#ifdef SHOAL_TEST_SANITIZED
// The address sanitizer's build expects its report here (CMakeLists.txt).
TEST_CASE("emulated: the address sanitizer reports what lies beside an allocation", "[.overflow]") {
  DeviceVector<int> memory(7);
  run(writes, 1, 1, 0, memory.data(), int64_t{7});
}
#else
__global__ void overflows_smem() {
  SHOAL_DYN_SMEM(volatile int, smem);
  smem[4] = 1;
}

TEST_CASE("emulated: writes past the end of device memory are found") {
  const Reset at_end;
  for (const int64_t index : {7, -1}) {
    void* memory = nullptr;
    REQUIRE(cudaMalloc(&memory, 28) == cudaSuccess);
    std::string report = reported(
        [&] { CHECK(run(writes, 1, 1, 0, static_cast<int*>(memory), index) == cudaErrorIllegalAddress); });
    CHECK_THAT(report, Contains(index == 7 ? "written 0 bytes past the end of the 28 bytes"
                                           : "written 4 bytes before the 28 bytes"));
    reset();
    report = reported([&] { CHECK(cudaFree(memory) == cudaErrorIllegalAddress); });  // looks as well
    CHECK_THAT(report, Contains("of the 28 bytes") || Contains("before the 28 bytes"));
    reset();
  }
#ifdef __x86_64__
  {
    DeviceVector<int> memory(64);  // fills its 256 bytes: the next one is the guard page's
    const std::string report = reported(
        [&] { CHECK(run(writes, 2, 1, 0, memory.data(), int64_t{64}) == cudaErrorIllegalAddress); });
    CHECK_THAT(report, Contains("writes") && Contains("block (0,0,0) thread (0,0,0)") &&
                           Contains("256 bytes from the start of 256 bytes of device memory"));
    reset();
  }
  const std::string report = reported(
      [] { CHECK(run(writes, 1, 1, 0, static_cast<int*>(nullptr), int64_t{3}) == cudaErrorIllegalAddress); });
  CHECK_THAT(report, Contains("access to 0xc, no device memory"));
  reset();
  reported([] { CHECK(run(overflows_smem, 1, 1, 16) == cudaErrorIllegalAddress); });
  reset();
#endif
  CHECK(run(nothing, 1, 64, 0) == cudaSuccess);
}
#endif  // SHOAL_TEST_SANITIZED

TEST_CASE("emulated: host calls check that what they copy and set is there") {
  DeviceVector<float> memory(10);
  std::vector<float> host(20);
  reported([&] {
    CHECK(cudaMemcpy(memory.data(), host.data(), 41, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host.data(), memory.data() + 1, 40, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host.data(), host.data(), 4, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host.data(), memory.data(), 4, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemset(memory.data(), 0, 44) == cudaErrorInvalidValue);
    CHECK(cudaMemset(memory.data(), 0, 40) == cudaSuccess);
    CHECK(cudaMemcpy(host.data(), memory.data(), 40, cudaMemcpyDefault) == cudaSuccess);
    CHECK(cudaFree(memory.data() + 1) == cudaErrorInvalidValue);
    CHECK(cudaFree(host.data()) == cudaErrorInvalidValue);
  });
  CHECK(host[9] == 0);
  cudaGetLastError();
}

// ---- Injected faults -------------------------------------------------------------------------------

TEST_CASE("emulated: the n-th allocation fails, once") {
  const Reset at_end;
  fail_allocation_after(1);
  void *first = nullptr, *second = nullptr;
  CHECK(cudaMalloc(&first, 100) == cudaSuccess);
  CHECK(cudaMalloc(&second, 100) == cudaErrorMemoryAllocation);
  CHECK(second == nullptr);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaSuccess);  // not sticky
  CHECK(cudaMalloc(&second, 100) == cudaSuccess);
  CHECK(cudaFree(first) == cudaSuccess);
  CHECK(cudaFree(second) == cudaSuccess);
}

TEST_CASE("emulated: the n-th kernel fails, its device is lost, others are not") {
  const Reset at_end;
  const Stream stream;
  fail_kernel_after(1);
  reported([&] {
    launch(nothing, 1, 1, 0, stream);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(run(nothing, 1, 1, 0) == cudaErrorLaunchFailure);
    CHECK(cudaStreamSynchronize(stream) == cudaErrorLaunchFailure);
    CHECK_THROWS_AS(launch(nothing, 1, 1, 0, stream), DeviceFault);
  });
  CHECK(cudaSetDevice(1) == cudaSuccess);
  CHECK(run(nothing, 1, 1, 0) == cudaSuccess);
  CHECK(cudaSetDevice(0) == cudaErrorLaunchFailure);
}

}  // namespace
}  // namespace shoal::emulated
