// Streams, events, graphs, memory, devices.
#include "emulated_cuda/test_support.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "emulated_cuda/stream_work.h"

namespace shoal::emulated {
namespace {

using namespace gpu;

__global__ void add_to(int* p, int value) { *p += value; }
__global__ void set_to(int* p, const int* from) { *p = *from; }
__global__ void wait_for(const uint32_t* flag) {
  while (ld_acquire(flag) == 0) spin_pause();
}
__global__ void raise(uint32_t* flag) { st_release(flag, 1); }

// Keeps a stream busy until opened.
class Gate {
 public:
  explicit Gate(cudaStream_t stream) {
    CHECK(enqueue(stream, [open = open_] {
            while (!*open) std::this_thread::yield();
          }) == cudaSuccess);
  }
  ~Gate() { open(); }
  void open() { *open_ = true; }

 private:
  std::shared_ptr<std::atomic<bool>> open_ = std::make_shared<std::atomic<bool>>(false);
};

struct Pinned {
  explicit Pinned(int value) {
    SHOAL_CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&data), sizeof(int), 0));
    *data = value;
  }
  ~Pinned() { cudaFreeHost(data); }
  int* data = nullptr;
};

TEST_CASE("emulated: streams run behind the host's back; pinned memory is read when they come to it") {
  DeviceVector<int> a(std::vector<int>{0}), b(std::vector<int>{0});
  const Pinned pinned(1);
  int pageable = 1;
  const Stream stream;
  {
    Gate gate(stream);
    CHECK(cudaMemcpyAsync(a.data(), pinned.data, 4, cudaMemcpyHostToDevice, stream) == cudaSuccess);
    CHECK(cudaMemcpyAsync(b.data(), &pageable, 4, cudaMemcpyHostToDevice, stream) == cudaSuccess);
    CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);
    *pinned.data = 2;  // a staging buffer used again too early
    pageable = 2;
    gate.open();
  }
  CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(cudaStreamQuery(stream) == cudaSuccess);
  CHECK(a.host()[0] == 2);
  CHECK(b.host()[0] == 1);
  cudaGetLastError();
}

TEST_CASE("emulated: events order streams and tell their time") {
  const Stream first, second;
  const Event start, event, never;
  DeviceVector<int> value(std::vector<int>{1}), copy(std::vector<int>{0});
  {
    Gate gate(first);
    CHECK(cudaEventRecord(start, first) == cudaSuccess);
    launch(add_to, 1, 1, 0, first, value.data(), 41);
    CHECK(cudaEventRecord(event, first) == cudaSuccess);
    CHECK(cudaEventQuery(event) == cudaErrorNotReady);
    CHECK(cudaGetLastError() == cudaErrorNotReady);
    CHECK(cudaStreamWaitEvent(second, event, 0) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(second, never, 0) == cudaSuccess);
    launch(set_to, 1, 1, 0, second, copy.data(), value.data());
    CHECK(cudaStreamQuery(second) == cudaErrorNotReady);
    float milliseconds = -1;
    CHECK(cudaEventElapsedTime(&milliseconds, start, event) == cudaErrorNotReady);
  }
  CHECK(cudaStreamSynchronize(second) == cudaSuccess);
  CHECK(copy.host()[0] == 42);
  CHECK(cudaEventQuery(event) == cudaSuccess);
  CHECK(cudaEventQuery(never) == cudaSuccess);
  CHECK(cudaEventSynchronize(event) == cudaSuccess);
  float milliseconds = -1;
  CHECK(cudaEventElapsedTime(&milliseconds, start, event) == cudaSuccess);
  CHECK(milliseconds >= 0);
  CHECK(cudaEventElapsedTime(&milliseconds, never, event) == cudaErrorInvalidResourceHandle);
  cudaGetLastError();
}

TEST_CASE("emulated: without an event, delayed streams do overtake each other", SHOAL_RACE) {
  const Reset at_end;
  bool overtaken = false;
  for (unsigned seed = 1; seed < 50 && !overtaken; ++seed) {
    const Stream first, second;
    DeviceVector<int> value(std::vector<int>{1}), copy(std::vector<int>{0});
    set_stream_delays(seed, 2000);
    launch(add_to, 1, 1, 0, first, value.data(), 41);
    launch(set_to, 1, 1, 0, second, copy.data(), value.data());
    cudaDeviceSynchronize();
    overtaken = copy.host()[0] == 1;
  }
  CHECK(overtaken);
}

TEST_CASE("emulated: the default stream waits for blocking streams, and they for it") {
  cudaStream_t blocking = nullptr;
  REQUIRE(cudaStreamCreate(&blocking) == cudaSuccess);
  DeviceVector<int> value(std::vector<int>{1});
  {
    Gate gate(blocking);
    launch(add_to, 1, 1, 0, nullptr, value.data(), 1);
    CHECK(cudaStreamQuery(nullptr) == cudaErrorNotReady);
    cudaGetLastError();
  }
  CHECK(cudaStreamSynchronize(nullptr) == cudaSuccess);
  {
    Gate gate(nullptr);
    launch(add_to, 1, 1, 0, blocking, value.data(), 1);
    CHECK(cudaStreamQuery(blocking) == cudaErrorNotReady);
    cudaGetLastError();
  }
  CHECK(cudaStreamSynchronize(blocking) == cudaSuccess);
  CHECK(value.host()[0] == 3);
  CHECK(cudaStreamDestroy(blocking) == cudaSuccess);
  CHECK(cudaStreamSynchronize(blocking) == cudaErrorInvalidResourceHandle);
  cudaGetLastError();
}

TEST_CASE("emulated: kernels on two devices see each other's flags") {
  int* flag = nullptr;
  REQUIRE(cudaMalloc(reinterpret_cast<void**>(&flag), 4) == cudaSuccess);
  CHECK(cudaMemset(flag, 0, 4) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  const Stream here;
  launch(wait_for, 1, 64, 0, here, reinterpret_cast<uint32_t*>(flag));
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  {
    const Stream there;
    launch(raise, 1, 1, 0, there, reinterpret_cast<uint32_t*>(flag));
    CHECK(cudaStreamSynchronize(there) == cudaSuccess);
  }
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  CHECK(cudaStreamSynchronize(here) == cudaSuccess);
  CHECK(cudaFree(flag) == cudaSuccess);
}

// ---- Graphs ----------------------------------------------------------------------------------------

TEST_CASE("emulated: a graph of two streams replays its calls with the memory's contents of then") {
  const Stream main, side, elsewhere;
  const Event fork, join;
  DeviceVector<int> value(std::vector<int>{0}), copy(std::vector<int>{0});
  const Pinned input(5);
  std::atomic<int> host_calls{0};
  REQUIRE(cudaStreamBeginCapture(main, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaMemcpyAsync(value.data(), input.data, 4, cudaMemcpyHostToDevice, main) == cudaSuccess);
  CHECK(cudaEventRecord(fork, main) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(side, fork, 0) == cudaSuccess);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  CHECK(cudaStreamIsCapturing(side, &status) == cudaSuccess);
  CHECK(status == cudaStreamCaptureStatusActive);
  launch(add_to, 1, 1, 0, side, value.data(), 10);
  CHECK(cudaEventRecord(join, side) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(main, join, 0) == cudaSuccess);
  launch(set_to, 1, 1, 0, main, copy.data(), value.data());
  CHECK(cudaLaunchHostFunc(
            main, [](void* calls) { ++*static_cast<std::atomic<int>*>(calls); }, &host_calls) ==
        cudaSuccess);
  CHECK(cudaMemsetAsync(value.data(), 0, 4, main) == cudaSuccess);
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamEndCapture(main, &graph) == cudaSuccess);
  CHECK(host_calls == 0);
  CHECK(copy.host()[0] == 0);  // nothing has run
  size_t nodes = 0;
  CHECK(cudaGraphGetNodes(graph, nullptr, &nodes) == cudaSuccess);
  CHECK(nodes == 5);
  cudaGraphExec_t exec = nullptr;
  REQUIRE(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  for (int i = 0; i < 5; ++i) {
    *input.data = i;
    CHECK(cudaGraphLaunch(exec, i == 3 ? elsewhere : main) == cudaSuccess);
    CHECK(cudaStreamSynchronize(i == 3 ? elsewhere : main) == cudaSuccess);
    CHECK(copy.host()[0] == i + 10);
    CHECK(host_calls == i + 1);
  }
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, main) == cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_CASE("emulated: what may not be captured invalidates the capture") {
  const Stream stream, other;
  const Event event, before;
  DeviceVector<int> value(std::vector<int>{0});
  int pageable = 0;
  void* memory = nullptr;
  CHECK(cudaEventRecord(before, other) == cudaSuccess);
  const std::vector<std::pair<std::function<cudaError_t()>, cudaError_t>> illegal = {
      {[&] { return cudaStreamSynchronize(stream); }, cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaStreamQuery(stream); }, cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaDeviceSynchronize(); }, cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaMalloc(&memory, 4); }, cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaMemcpy(value.data(), &pageable, 4, cudaMemcpyHostToDevice); },
       cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaMemcpyAsync(&pageable, value.data(), 4, cudaMemcpyDeviceToHost, stream); },
       cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaStreamWaitEvent(stream, before, 0); }, cudaErrorStreamCaptureIsolation},
  };
  for (size_t i = 0; i < illegal.size(); ++i) {
    INFO("call " << i);
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    launch(add_to, 1, 1, 0, stream, value.data(), 1);
    CHECK(illegal[i].first() == illegal[i].second);
    CHECK(cudaMemsetAsync(value.data(), 0, 4, stream) == cudaErrorStreamCaptureInvalidated);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr);
    cudaGetLastError();
  }
  // Another thread's calls do not matter in the thread-local mode.
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  std::thread([&] { CHECK(cudaEventSynchronize(before) == cudaSuccess); }).join();
  CHECK(cudaEventRecord(event, stream) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(other, event, 0) == cudaSuccess);
  launch(add_to, 1, 1, 0, other, value.data(), 1);
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(other, &graph) == cudaErrorStreamCaptureUnmatched);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureUnjoined);
  CHECK(cudaEventQuery(event) == cudaErrorCapturedEvent);
  cudaGetLastError();
  CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(value.host()[0] == 0);
}

// ---- Memory and devices ----------------------------------------------------------------------------

TEST_CASE("emulated: memory is counted per device, limited, NaN when new and gone when free") {
  size_t before = 0, available = 0, total = 0;
  REQUIRE(cudaMemGetInfo(&before, &total) == cudaSuccess);
  void* memory = nullptr;
  CHECK(cudaMalloc(&memory, total + 1) == cudaErrorMemoryAllocation);
  CHECK(cudaMalloc(&memory, SIZE_MAX) == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  REQUIRE(cudaMalloc(&memory, 1000) == cudaSuccess);
  CHECK(reinterpret_cast<uintptr_t>(memory) % 256 == 0);
  CHECK(is_device_memory(memory, 1000));
  CHECK(!is_device_memory(memory, 1001));
  unsigned last = 0;
  CHECK(cudaMemcpy(&last, static_cast<char*>(memory) + 996, 4, cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(last == 0xffffffffu);
  CHECK(cudaMemGetInfo(&available, &total) == cudaSuccess);
  CHECK(available < before);
  cudaSetDevice(1);
  CHECK(cudaMemGetInfo(&available, &total) == cudaSuccess);
  CHECK(available == total);
  cudaSetDevice(0);
  CHECK(cudaFree(memory) == cudaSuccess);
  CHECK(cudaMemGetInfo(&available, &total) == cudaSuccess);
  CHECK(available == before);
  CHECK(!is_device_memory(memory, 1));
  CHECK(cudaFree(memory) == cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_CASE("emulated: devices, their properties and what peers may do") {
  int count = 0, can = 0, value = 0;
  CHECK(cudaGetDeviceCount(&count) == cudaSuccess);
  CHECK(count == 8);
  CHECK(cudaSetDevice(count) == cudaErrorInvalidDevice);
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 7) == cudaSuccess);
  CHECK(std::string(properties.name) == "Emulated GPU");
  CHECK(properties.sharedMemPerBlockOptin == 227 * 1024);
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess);
  CHECK(value == 9);
  CHECK(cudaDeviceCanAccessPeer(&can, 0, 3) == cudaSuccess);
  CHECK(can == 1);
  CHECK(cudaDeviceCanAccessPeer(&can, 2, 2) == cudaSuccess);
  CHECK(can == 0);
  CHECK(cudaDeviceEnablePeerAccess(3, 0) == cudaSuccess);
  CHECK(cudaDeviceEnablePeerAccess(3, 0) == cudaErrorPeerAccessAlreadyEnabled);
  CHECK(cudaDeviceEnablePeerAccess(0, 0) == cudaErrorInvalidDevice);
  CHECK(std::string(cudaGetErrorName(cudaGetLastError())) == "cudaErrorInvalidDevice");
}

// ---- Memory shared between processes ---------------------------------------------------------------

constexpr const char* kHandleVariable = "SHOAL_TEST_IPC_HANDLE";

// The other process of the next test.
TEST_CASE("emulated: the process that opens an IPC handle", "[.ipc]") {
  const char* text = getenv(kHandleVariable);
  REQUIRE(text != nullptr);
  cudaIpcMemHandle_t handle;
  for (size_t i = 0; i < sizeof(handle.reserved); ++i) {
    const char digits[3] = {text[2 * i], text[2 * i + 1], 0};
    handle.reserved[i] = static_cast<char>(strtol(digits, nullptr, 16));
  }
  void* memory = nullptr;
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  REQUIRE(cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess);
  int* p = static_cast<int*>(memory);
  launch(add_to, 1, 1, 0, nullptr, p + 1, 5);  // what the owner wrote before
  launch(raise, 1, 1, 0, nullptr, reinterpret_cast<uint32_t*>(p));
  launch(wait_for, 1, 1, 0, nullptr, reinterpret_cast<uint32_t*>(p + 2));
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(cudaIpcCloseMemHandle(memory) == cudaSuccess);
  CHECK(cudaIpcCloseMemHandle(memory) == cudaErrorInvalidValue);
}

TEST_CASE("emulated: two processes share memory by an IPC handle, kernels spinning on each other's flags") {
  DeviceVector<int> memory(std::vector<int>{0, 37, 0});
  cudaIpcMemHandle_t handle;
  REQUIRE(cudaIpcGetMemHandle(&handle, memory.data()) == cudaSuccess);
  void* again = nullptr;
  CHECK(cudaIpcOpenMemHandle(&again, handle, 0) == cudaErrorDeviceUninitialized);  // one's own
  cudaGetLastError();
  std::string text;
  for (const char byte : handle.reserved) text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  setenv(kHandleVariable, text.c_str(), 1);
  char* arguments[] = {const_cast<char*>("peer"),
                       const_cast<char*>("emulated: the process that opens an IPC handle"), nullptr};
  pid_t peer = 0;
  REQUIRE(posix_spawn(&peer, "/proc/self/exe", nullptr, nullptr, arguments, environ) == 0);
  launch(wait_for, 1, 1, 0, nullptr, reinterpret_cast<uint32_t*>(memory.data()));
  CHECK(memory.host()[1] == 42);
  launch(raise, 1, 1, 0, nullptr, reinterpret_cast<uint32_t*>(memory.data() + 2));
  int status = -1;
  CHECK(waitpid(peer, &status, 0) == peer);
  CHECK(status == 0);
}

}  // namespace
}  // namespace shoal::emulated
