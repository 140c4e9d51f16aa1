// Devices, errors, attributes and the launch of kernels.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include <fmt/format.h>

#include "emulated_cuda/block.h"
#include "emulated_cuda/control.h"
#include "emulated_cuda/device.h"
#include "emulated_cuda/state.h"
#include "emulated_cuda/stream_work.h"

namespace emu = shoal::emulated;
using emu::answer;

namespace shoal::emulated {
namespace {

// Few, so that grids sized by it stay cheap.
constexpr int kMultiprocessors = 4;

constinit thread_local int this_device = 0;
constinit thread_local cudaError_t last_error = cudaSuccess;

size_t from_environment(const char* name, size_t otherwise) {
  const char* value = getenv(name);
  return value == nullptr ? otherwise : strtoull(value, nullptr, 10);
}

struct Control {
  std::atomic<unsigned> seed{static_cast<unsigned>(from_environment("SHOAL_EMULATED_SEED", 0))};
  std::atomic<int64_t> allocations_left{-1}, kernels_left{-1};
  std::atomic<bool> kernel_images{true};
  std::mutex trace_mutex;
  bool tracing = false;
  std::vector<std::pair<const char*, const void*>> trace;  // of each entry one is null
};
Control& control() {
  static Control& all = *new Control;
  return all;
}

// True for the call that brings it below 0.
bool count_down(std::atomic<int64_t>& left) {
  int64_t before = left;
  while (before >= 0 && !left.compare_exchange_weak(before, before - 1)) {
  }
  return before == 0;
}

// Dynamic shared memory that a kernel may have on a device, where it has asked for more than kUnaskedSmem.
std::map<std::pair<int, const void*>, size_t>& dynamic_smem_limits() {
  static auto& all = *new std::map<std::pair<int, const void*>, size_t>;
  return all;
}
constexpr size_t kDefaultSmem = 48 * 1024;

}  // namespace

std::recursive_mutex& api_lock() {
  static std::recursive_mutex& lock = *new std::recursive_mutex;
  return lock;
}

int device_count() {
  static const int count = static_cast<int>(from_environment("SHOAL_EMULATED_DEVICES", 8));
  return count;
}

int architecture() {
  static const int arch = static_cast<int>(from_environment("SHOAL_EMULATED_ARCH", 90));
  return arch;
}

size_t smem_limit() {  // CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"
  switch (architecture()) {
    case 80: case 87: return 163 * 1024;
    case 86: case 89: case 120: return 99 * 1024;
    default: return 227 * 1024;
  }
}

size_t memory_limit() {
  static const size_t limit = from_environment("SHOAL_EMULATED_MEMORY", size_t{8} << 30);
  return limit;
}

int current_device() { return this_device; }

Device& device(int index) {
  static std::vector<Device>& all = *[] {
    auto* devices = new std::vector<Device>(static_cast<size_t>(device_count()));
    for (size_t i = 0; i < devices->size(); ++i) (*devices)[i].index = static_cast<int>(i);
    return devices;
  }();
  return all.at(static_cast<size_t>(index));
}

cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t explain(cudaError_t error, const std::string& text) {
  fprintf(stderr, "emulated CUDA: %s\n", text.c_str());
  return error;
}

void fault_device(int index, cudaError_t error, const std::string& text) {
  explain(error, fmt::format("device {}: {}", index, text));
  cudaError_t none = cudaSuccess;
  device(index).fault.compare_exchange_strong(none, error);
}

unsigned thread_order_seed() { return control().seed; }
void set_thread_order_seed(unsigned seed) { control().seed = seed; }
void fail_allocation_after(int64_t n) { control().allocations_left = n; }
void fail_kernel_after(int64_t n) { control().kernels_left = n; }
void set_kernel_images(bool present) { control().kernel_images = present; }
std::vector<std::string> take_trace() {
  std::vector<std::pair<const char*, const void*>> trace;
  {
    const std::lock_guard guard(control().trace_mutex);
    control().tracing = true;
    trace.swap(control().trace);
  }
  std::map<const void*, std::string> names;  // a look at the symbol table takes milliseconds
  std::vector<std::string> all;
  for (const auto& [what, kernel] : trace) {
    std::string& name = names[kernel];
    if (kernel != nullptr && name.empty()) name = function_name(kernel);
    all.push_back(kernel != nullptr ? name : what);
  }
  return all;
}

void trace(const char* what, const void* kernel) {
  const std::lock_guard guard(control().trace_mutex);
  if (control().tracing) control().trace.emplace_back(what, kernel);
}

bool allocation_fails() { return count_down(control().allocations_left); }
bool kernel_fails() { return count_down(control().kernels_left); }

void reset() {
  set_thread_order_seed(static_cast<unsigned>(from_environment("SHOAL_EMULATED_SEED", 0)));
  fail_allocation_after(-1);
  fail_kernel_after(-1);
  set_kernel_images(true);
  set_stream_delays(0, 0);
  {
    const std::lock_guard guard(control().trace_mutex);
    control().tracing = false;
    control().trace.clear();
  }
  for (int i = 0; i < device_count(); ++i) device(i).fault = cudaSuccess;
  last_error = cudaSuccess;
}

cudaError_t launch_kernel(const void* kernel, dim3 grid, dim3 block, size_t dynamic_smem,
                          cudaStream_t stream, std::function<void()> thread_body) {
  if (!control().kernel_images) return answer(cudaErrorNoKernelImageForDevice);
  const uint64_t threads = uint64_t{1} * block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return answer(explain(cudaErrorInvalidConfiguration,
                          fmt::format("launch of {} with grid ({},{},{}), block ({},{},{})",
                                      function_name(kernel), grid.x, grid.y, grid.z, block.x, block.y,
                                      block.z)));
  }
  {
    const ApiGuard guard(api_lock());
    if (device_of(stream) != current_device()) return answer(cudaErrorInvalidResourceHandle);
    const auto limit = dynamic_smem_limits().find({current_device(), kernel});
    if (dynamic_smem > (limit == dynamic_smem_limits().end() ? kUnaskedSmem : limit->second)) {
      return answer(explain(cudaErrorInvalidValue,
                            fmt::format("launch of {} with {} bytes of dynamic shared memory, more than "
                                        "cudaFuncSetAttribute was asked for",
                                        function_name(kernel), dynamic_smem)));
    }
  }
  return answer(enqueue(
      stream, [launch = Launch{kernel, grid, block, dynamic_smem, std::move(thread_body)}] {
        if (kernel_fails()) {
          throw KernelFault(cudaErrorLaunchFailure, "injected failure of kernel " +
                                                        function_name(launch.kernel));
        }
        trace(nullptr, launch.kernel);
        run_grid(launch, thread_order_seed());
      }));
}

}  // namespace shoal::emulated

// ---- Devices ---------------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
  *count = emu::device_count();
  return answer(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaSetDevice(int index) {
  if (index < 0 || index >= emu::device_count()) return answer(cudaErrorInvalidDevice);
  emu::this_device = index;
  return answer(emu::device(index).fault);
}

cudaError_t cudaGetDevice(int* index) {
  *index = emu::current_device();
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index) {
  if (index < 0 || index >= emu::device_count()) return answer(cudaErrorInvalidDevice);
  *properties = {};
  strcpy(properties->name, "Emulated GPU");
  properties->major = emu::architecture() / 10;
  properties->minor = emu::architecture() % 10;
  properties->totalGlobalMem = emu::memory_limit();
  properties->multiProcessorCount = emu::kMultiprocessors;
  properties->sharedMemPerBlock = emu::kDefaultSmem;
  properties->sharedMemPerBlockOptin = emu::smem_limit();
  properties->sharedMemPerMultiprocessor = emu::smem_limit() + 1024;
  properties->reservedSharedMemPerBlock = 1024;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxBlocksPerMultiProcessor = 32;
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 0x7fffffff;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->l2CacheSize = 50 << 20;
  properties->memoryBusWidth = 5120;
  properties->asyncEngineCount = 2;
  properties->concurrentKernels = properties->unifiedAddressing = properties->canMapHostMemory = 1;
  properties->pciBusID = index + 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    return error;
  }
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = properties.maxThreadsPerBlock; break;
    case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; break;
    case cudaDevAttrComputeCapabilityMajor: *value = properties.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; break;
    case cudaDevAttrWarpSize: *value = properties.warpSize; break;
    case cudaDevAttrL2CacheSize: *value = properties.l2CacheSize; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(properties.sharedMemPerBlock); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(properties.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrClockRate: *value = 1'000'000; break;         // kHz
    case cudaDevAttrMemoryClockRate: *value = 1'000'000; break;  // kHz
    case cudaDevAttrGlobalMemoryBusWidth: *value = properties.memoryBusWidth; break;
    case cudaDevAttrComputeMode: *value = cudaComputeModeDefault; break;
    case cudaDevAttrCooperativeLaunch: *value = 0; break;  // blocks of a grid run one after another
    default: return answer(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int index) {
  if (index < 0 || index >= emu::device_count()) return answer(cudaErrorInvalidDevice);
  snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", static_cast<unsigned>(index + 1));
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t error = emu::unsafe_call(); error != cudaSuccess) return answer(error);
  return answer(emu::synchronize_device(emu::current_device()));
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int index, int peer) {
  if (std::min(index, peer) < 0 || std::max(index, peer) >= emu::device_count()) {
    return answer(cudaErrorInvalidDevice);
  }
  *can = index != peer;
  return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
  const emu::ApiGuard guard(emu::api_lock());
  if (peer < 0 || peer >= emu::device_count() || peer == emu::current_device()) {
    return answer(cudaErrorInvalidDevice);
  }
  auto& peers = emu::device(emu::current_device()).peers;
  peers.resize(static_cast<size_t>(emu::device_count()));
  if (peers[static_cast<size_t>(peer)]) return answer(cudaErrorPeerAccessAlreadyEnabled);
  peers[static_cast<size_t>(peer)] = true;
  return cudaSuccess;
}

// ---- Versions: those of the headers ----------------------------------------------------------------

cudaError_t cudaDriverGetVersion(int* version) {
  *version = emu::device_count() == 0 ? 0 : CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

// ---- Errors ----------------------------------------------------------------------------------------

cudaError_t cudaPeekAtLastError() {
  const cudaError_t fault =
      emu::device_count() == 0 ? cudaSuccess : emu::device(emu::current_device()).fault.load();
  return fault != cudaSuccess ? fault : emu::last_error;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  emu::last_error = cudaSuccess;
  return error;
}

namespace {
struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};
#define SHOAL_ERROR(error, text) {error, #error, text}
constexpr ErrorText kErrors[] = {
    SHOAL_ERROR(cudaSuccess, "no error"),
    SHOAL_ERROR(cudaErrorInvalidValue, "invalid argument"),
    SHOAL_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    SHOAL_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    SHOAL_ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    SHOAL_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    SHOAL_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    SHOAL_ERROR(cudaErrorDeviceUninitialized, "invalid device context"),
    SHOAL_ERROR(cudaErrorMapBufferObjectFailed, "mapping of buffer object failed"),
    SHOAL_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    SHOAL_ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    SHOAL_ERROR(cudaErrorNotReady, "device not ready"),
    SHOAL_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    SHOAL_ERROR(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled"),
    SHOAL_ERROR(cudaErrorHostMemoryAlreadyRegistered, "part or all of the requested memory range is already mapped"),
    SHOAL_ERROR(cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region"),
    SHOAL_ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    SHOAL_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    SHOAL_ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    SHOAL_ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    SHOAL_ERROR(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences"),
    SHOAL_ERROR(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    SHOAL_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    SHOAL_ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    SHOAL_ERROR(cudaErrorStreamCaptureImplicit, "operation would make the legacy stream depend on a capturing blocking stream"),
    SHOAL_ERROR(cudaErrorStreamCaptureWrongThread, "attempt to terminate a thread-local capture sequence from another thread"),
    SHOAL_ERROR(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
};
#undef SHOAL_ERROR
const ErrorText* find_error(cudaError_t error) {
  for (const ErrorText& each : kErrors) {
    if (each.error == error) return &each;
  }
  return nullptr;
}
}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* found = find_error(error);
  return found == nullptr ? "unrecognized error code" : found->name;
}
const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* found = find_error(error);
  return found == nullptr ? "unrecognized error code" : found->text;
}

// ---- Kernels ---------------------------------------------------------------------------------------

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      static_cast<size_t>(value) > emu::smem_limit()) {
    return answer(emu::explain(cudaErrorInvalidValue,
                               fmt::format("{} bytes of dynamic shared memory asked for {}; sm_{} has {}",
                                           value, emu::function_name(function), emu::architecture(),
                                           emu::smem_limit())));
  }
  const emu::ApiGuard guard(emu::api_lock());
  emu::dynamic_smem_limits()[{emu::current_device(), function}] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  if (!emu::control().kernel_images) return answer(cudaErrorNoKernelImageForDevice);
  const emu::ApiGuard guard(emu::api_lock());
  const auto limit = emu::dynamic_smem_limits().find({emu::current_device(), function});
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(
      limit == emu::dynamic_smem_limits().end() ? emu::kUnaskedSmem : limit->second);
  attributes->binaryVersion = attributes->ptxVersion = emu::architecture();
  attributes->numRegs = 32;  // not known here
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads,
                                                          size_t dynamic_smem) {
  if (threads <= 0 || threads > 1024) return answer(cudaErrorInvalidValue);
  const size_t by_smem = (emu::smem_limit() + 1024) / (dynamic_smem + 1024);
  *blocks = static_cast<int>(std::min<size_t>({static_cast<size_t>(2048 / threads), by_smem, 32}));
  return cudaSuccess;
}
