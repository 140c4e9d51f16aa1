#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/kernel_image.h"

namespace shoal {

class CudaGraph final : public DeviceGraph {
 public:
  CudaGraph(cudaGraphExec_t exec, CudaDevice& device) : exec_(exec), device_(device) {}
  ~CudaGraph() override { cudaGraphExecDestroy(exec_); }
  void launch() override {
    SHOAL_CUDA_CHECK(cudaGraphLaunch(exec_, device_.stream()));
    device_.notify_graph_launched();
  }

 private:
  cudaGraphExec_t exec_;
  CudaDevice& device_;
};

class CudaEvent final : public DeviceEvent {
 public:
  explicit CudaEvent(CudaDevice& device) : device_(device) {
    if (device_.spare_events_.empty()) {
      SHOAL_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
    } else {
      event_ = device_.spare_events_.back();
      device_.spare_events_.pop_back();
    }
    if (const cudaError_t error = cudaEventRecord(event_, device_.stream()); error != cudaSuccess) {
      cudaEventDestroy(event_);
      SHOAL_CUDA_CHECK(error);
    }
  }
  ~CudaEvent() override { device_.spare_events_.push_back(event_); }
  void wait() override {
    SHOAL_CUDA_CHECK(cudaEventSynchronize(event_));
    device_.notify_waited();  // it may have come because a collective before it was given up
  }
  bool done() override {
    const cudaError_t state = cudaEventQuery(event_);
    if (state == cudaErrorNotReady) return false;
    SHOAL_CUDA_CHECK(state);
    device_.notify_waited();
    return true;
  }
  cudaEvent_t event() const { return event_; }

 private:
  CudaDevice& device_;
  cudaEvent_t event_ = nullptr;
};

namespace {

std::string version_string(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

// Throws what is wrong with this machine, as bad input: it is for the person who started Shoal to
// mend.
void require_device(int index) {
  int driver = 0, runtime = 0, count = 0;
  cudaRuntimeGetVersion(&runtime);
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    throw_invalid(
        "--device cuda: no NVIDIA driver on this machine; install one for CUDA {} or newer, "
        "or use --device cpu",
        version_string(runtime));
  }
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    throw_invalid(
        "--device cuda: the NVIDIA driver is for CUDA {}, this binary needs {} or newer: "
        "update the driver, or use --device cpu",
        version_string(driver), version_string(runtime));
  }
  if (error == cudaErrorSystemNotReady) {  // what NVSwitch machines say until it runs
    throw_invalid(
        "--device cuda: the GPUs are not ready ({}): start nvidia-fabricmanager, or use --device "
        "cpu",
        cudaGetErrorString(error));
  }
  if (error != cudaSuccess || count == 0) {
    throw_invalid("--device cuda: no GPU ({}); use --device cpu",
                  error == cudaSuccess ? "none found" : cudaGetErrorString(error));
  }
  if (index >= count) {
    throw_invalid(
        "--device cuda: rank {} of this node needs a GPU of its own, and there {} {}; use "
        "--tensor-parallel-size {} or fewer",
        index, count == 1 ? "is" : "are", count, count);
  }
}

}  // namespace

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

std::string cuda_summary() {
  try {
    require_device(0);
  } catch (const InvalidInput& e) {
    const std::string text = e.what();
    const std::string prefix = "--device cuda: ";
    return text.substr(prefix.size(), text.find_first_of(";(", prefix.size()) - prefix.size());
  }
  cudaDeviceProp properties{};
  SHOAL_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  int driver = 0;
  SHOAL_CUDA_CHECK(cudaDriverGetVersion(&driver));
  const int count = cuda_device_count();
  return fmt::format("{} x {} (sm_{}{}), driver for CUDA {}", count, properties.name,
                     properties.major, properties.minor, version_string(driver));
}

std::unique_ptr<CudaDevice> make_cuda_device(int index) {
  return std::make_unique<CudaDevice>(index);
}

CudaDevice::CudaDevice(int index) : index_(index) {
  require_device(index);
  if (const cudaError_t error = cudaSetDevice(index); error != cudaSuccess) {
    throw_invalid(
        "--device cuda: GPU {} cannot be used: {}; another process may hold it "
        "exclusively (nvidia-smi)",
        index, cudaGetErrorString(error));
  }
  cudaDeviceProp properties{};
  SHOAL_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  arch_ = 10 * properties.major + properties.minor;
  num_sms_ = properties.multiProcessorCount;
  max_smem_ = properties.sharedMemPerBlockOptin;
  name_ = fmt::format("cuda:{} {} (sm_{}, {:.0f} GiB)", index, properties.name, arch_,
                      static_cast<double>(properties.totalGlobalMem) / (size_t{1} << 30));
  if (arch_ < 80) {
    throw_invalid("--device cuda: GPU {} is {}, sm_{}; Shoal needs sm_80 (Ampere) or newer", index,
                  properties.name, arch_);
  }
  if (const cudaError_t error = find_kernel_image(); error != cudaSuccess) {
    throw_invalid(
        "--device cuda: this binary has no kernels for GPU {}, {}, sm_{} ({}): build it with "
        "-DCMAKE_CUDA_ARCHITECTURES={}, or use --device cpu",
        index, properties.name, arch_, cudaGetErrorString(error), arch_);
  }
  SHOAL_CUDA_CHECK(cudaStreamCreateWithFlags(&main_stream_, cudaStreamNonBlocking));
  stream_ = main_stream_;
  for (Staging& slot : staging_) {
    void* data = nullptr;
    SHOAL_CUDA_CHECK(cudaHostAlloc(&data, kStagingBytes, cudaHostAllocDefault));
    slot.data = static_cast<std::byte*>(data);
    SHOAL_CUDA_CHECK(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
    SHOAL_CUDA_CHECK(cudaEventCreateWithFlags(&slot.copied_beside, cudaEventDisableTiming));
  }
}

CudaDevice::~CudaDevice() {
  // Errors are past mending here, and a lost device reports one for every call.
  for (cudaStream_t stream : {main_stream_, side_stream_}) {
    if (stream != nullptr) cudaStreamSynchronize(stream);
  }
  for (Staging& slot : staging_) {
    for (cudaEvent_t event : {slot.copied, slot.copied_beside}) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (slot.data != nullptr) cudaFreeHost(slot.data);
  }
  for (cudaEvent_t event : spare_events_) cudaEventDestroy(event);
  for (cudaStream_t stream : {main_stream_, side_stream_}) {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
}

std::string CudaDevice::name() const { return name_; }

Buffer CudaDevice::allocate(size_t bytes) {
  SHOAL_CHECK(!capturing_, "{} bytes allocated while a graph is recorded", bytes);
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, std::max<size_t>(bytes, 1));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    const auto [available, total] = memory_info();
    throw DeviceFault(
        fmt::format("{}: out of memory allocating {} bytes ({} of {} are free): lower "
                    "--gpu-memory-utilization, or "
                    "free what other processes hold (nvidia-smi)",
                    name_, bytes, available, total));
  }
  SHOAL_CUDA_CHECK(error);
  return Buffer(this, data, bytes);
}

void CudaDevice::deallocate(void* data) { cudaFree(data); }

std::pair<size_t, size_t> CudaDevice::memory_info() const {
  size_t available = 0, total = 0;
  SHOAL_CUDA_CHECK(cudaMemGetInfo(&available, &total));
  return {available, total};
}

std::byte* CudaDevice::stage(size_t bytes) {
  // Pieces stay 16-byte aligned: an unaligned copy is slower.
  const size_t padded = (bytes + 15) / 16 * 16;
  if (staging_[staging_slot_].used + padded > kStagingBytes) {
    // The slot's copies are all issued; the other one is free again when its own have run.
    SHOAL_CUDA_CHECK(cudaEventRecord(staging_[staging_slot_].copied, main_stream_));
    if (side_stream_ != nullptr) {
      SHOAL_CUDA_CHECK(cudaEventRecord(staging_[staging_slot_].copied_beside, side_stream_));
    }
    staging_slot_ = (staging_slot_ + 1) % kStagingSlots;
    SHOAL_CUDA_CHECK(cudaEventSynchronize(staging_[staging_slot_].copied));
    SHOAL_CUDA_CHECK(cudaEventSynchronize(staging_[staging_slot_].copied_beside));
    notify_waited();
    staging_[staging_slot_].used = 0;
  }
  Staging& slot = staging_[staging_slot_];
  std::byte* data = slot.data + slot.used;
  slot.used += padded;
  return data;
}

void CudaDevice::copy_to_device(void* device, const void* host, size_t bytes) {
  upload(device, bytes, 1, [&](std::byte* memory, size_t offset, size_t count) {
    std::memcpy(memory, static_cast<const std::byte*>(host) + offset, count);
  });
}

void CudaDevice::upload(void* device, size_t bytes, size_t unit, const Fill& fill) {
  SHOAL_CHECK(!capturing_, "host values copied while a graph is recorded");
  SHOAL_CHECK(0 < unit && unit <= kStagingBytes, "pieces of {} bytes", unit);
  const size_t largest = kStagingBytes / unit * unit;
  for (size_t done = 0; done < bytes;) {
    const size_t piece = std::min(bytes - done, largest);
    std::byte* staged = stage(piece);
    fill(staged, done, piece);
    SHOAL_CUDA_CHECK(cudaMemcpyAsync(static_cast<std::byte*>(device) + done, staged, piece,
                                     cudaMemcpyHostToDevice, stream()));
    done += piece;
  }
}

void CudaDevice::copy_on_device(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  SHOAL_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream()));
}

void CudaDevice::copy_to_host(void* host, const void* device, size_t bytes) {
  SHOAL_CHECK(!capturing_, "values copied to the host while a graph is recorded");
  if (bytes == 0) return;
  SHOAL_CUDA_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_));
  SHOAL_CUDA_CHECK(cudaStreamSynchronize(stream_));
  notify_waited();
}

void CudaDevice::copy_to_host_async(const HostBuffer& to, size_t offset, const void* device,
                                    size_t bytes) {
  SHOAL_CHECK(!capturing_, "values copied to the host while a graph is recorded");
  SHOAL_CHECK(offset <= to.bytes() && bytes <= to.bytes() - offset, "{} bytes at {} of {}", bytes,
              offset, to.bytes());
  if (bytes == 0) return;
  SHOAL_CUDA_CHECK(
      cudaMemcpyAsync(to.data() + offset, device, bytes, cudaMemcpyDeviceToHost, stream_));
}

void CudaDevice::copy_to_device_async(void* device, const HostBuffer& from, size_t offset,
                                      size_t bytes) {
  SHOAL_CHECK(!capturing_, "host values copied while a graph is recorded");
  SHOAL_CHECK(offset <= from.bytes() && bytes <= from.bytes() - offset, "{} bytes at {} of {}",
              bytes, offset, from.bytes());
  if (bytes == 0) return;
  SHOAL_CUDA_CHECK(
      cudaMemcpyAsync(device, from.data() + offset, bytes, cudaMemcpyHostToDevice, stream()));
}

HostBuffer CudaDevice::allocate_host(size_t bytes) {
  SHOAL_CHECK(!capturing_, "{} bytes of host memory allocated while a graph is recorded", bytes);
  void* data = nullptr;
  if (const cudaError_t error =
          cudaHostAlloc(&data, std::max<size_t>(bytes, 1), cudaHostAllocDefault);
      error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw DeviceFault(
        fmt::format("{}: {} bytes of host memory cannot be pinned (ulimit -l, or memory "
                    "of the machine)",
                    name_, bytes));
  } else {
    SHOAL_CUDA_CHECK(error);
  }
  return HostBuffer(static_cast<std::byte*>(data), bytes, [](std::byte* p) { cudaFreeHost(p); });
}

std::unique_ptr<DeviceEvent> CudaDevice::record() {
  SHOAL_CHECK(!capturing_, "an event of the host's while a graph is recorded");
  return std::make_unique<CudaEvent>(*this);
}

std::unique_ptr<DeviceEvent> CudaDevice::beside(const DeviceEvent& after,
                                                const std::function<void()>& work) {
  SHOAL_CHECK(!capturing_ && stream_ == main_stream_, "a queue beside a queue, or in a graph");
  if (side_stream_ == nullptr) {
    constexpr int kHighest = -5;  // what is beyond the device's range is clamped to it
    SHOAL_CUDA_CHECK(cudaStreamCreateWithPriority(&side_stream_, cudaStreamNonBlocking, kHighest));
  }
  struct Back {
    CudaDevice& device;
    ~Back() { device.stream_ = device.main_stream_; }
  } back{*this};
  stream_ = side_stream_;
  order_after(after);
  work();
  return record();
}

void CudaDevice::order_after(const DeviceEvent& event) {
  SHOAL_CUDA_CHECK(
      cudaStreamWaitEvent(stream_, static_cast<const CudaEvent&>(event).event(), 0));
}

void CudaDevice::zero(void* device, size_t bytes) {
  if (bytes > 0) SHOAL_CUDA_CHECK(cudaMemsetAsync(device, 0, bytes, stream()));
}

void CudaDevice::synchronize() {
  SHOAL_CUDA_CHECK(cudaStreamSynchronize(main_stream_));
  if (side_stream_ != nullptr) SHOAL_CUDA_CHECK(cudaStreamSynchronize(side_stream_));
  notify_waited();
}

void CudaDevice::notify_waited() {
  for (StreamObserver* observer : observers_) observer->waited();
}

void CudaDevice::notify_graph_launched() {
  for (StreamObserver* observer : observers_) observer->graph_launched();
}

std::unique_ptr<DeviceGraph> CudaDevice::capture(const std::function<void()>& work) {
  cudaGraph_t graph = nullptr;
  // Thread-local: other threads (the watchdog's event queries) go on as before.
  SHOAL_CUDA_CHECK(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal));
  capturing_ = true;
  try {
    work();
  } catch (...) {
    capturing_ = false;
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();  // that the capture was lost is no news: the next launch must not report it
    throw;
  }
  capturing_ = false;
  SHOAL_CUDA_CHECK(cudaStreamEndCapture(stream(), &graph));
  cudaGraphExec_t exec = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  SHOAL_CUDA_CHECK(error);
  return std::make_unique<CudaGraph>(exec, *this);
}

}  // namespace shoal
