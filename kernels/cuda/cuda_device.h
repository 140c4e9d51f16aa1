// CudaDevice: one GPU of this process, one compute stream and one beside it, and pinned staging memory through which
// host values go up without waiting.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <memory>
#include <vector>

#include "kernels/base/device.h"

namespace shoal {

// Told of what the device's stream does, on the thread that drives the device. parallel/nccl needs
// it: a wait may have ended because a collective was given up, and a graph may hold collectives.
class StreamObserver {
 public:
  virtual ~StreamObserver() = default;
  virtual void waited() = 0;  // after each wait for the stream; may throw DeviceFault
  virtual void
  graph_launched() = 0;  // after each launch of a recorded graph; may throw DeviceFault
};

class CudaDevice final : public Device {
 public:
  // Throws InvalidInput (one line: what the machine lacks) when there is no driver, it is too old,
  // there is no device `index`, its architecture was not compiled in, or it cannot be used now.
  explicit CudaDevice(int index);
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;

  std::string name() const override;
  Buffer allocate(size_t bytes) override;
  // Goes through pinned memory and returns when the last piece is on its way; ordered on stream()
  // with everything else.
  void copy_to_device(void* device, const void* host, size_t bytes) override;
  void copy_to_host(void* host, const void* device, size_t bytes) override;
  void copy_to_host_async(const HostBuffer& to, size_t offset, const void* device,
                          size_t bytes) override;
  void copy_to_device_async(void* device, const HostBuffer& from, size_t offset,
                            size_t bytes) override;
  HostBuffer allocate_host(size_t bytes) override;
  std::unique_ptr<DeviceEvent> record() override;
  // The second queue is a stream of higher priority: NCCL's few blocks then get their
  // multiprocessors while a product fills the others.
  std::unique_ptr<DeviceEvent> beside(const DeviceEvent& after,
                                      const std::function<void()>& work) override;
  void order_after(const DeviceEvent& event) override;
  void copy_on_device(void* to, const void* from, size_t bytes) override;
  void upload(void* device, size_t bytes, size_t unit, const Fill& fill) override;
  void zero(void* device, size_t bytes) override;
  void synchronize() override;
  std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work) override;
  std::pair<size_t, size_t> memory_info() const override;

  int index() const { return index_; }
  // What calls are issued to now: the second queue's inside beside().
  // Who asks for it issues work; see issued().
  cudaStream_t stream() const {
    ++issued_;
    return stream_;
  }
  // Unchanged since an earlier look: no work can have been issued in between (by whoever does not keep
  // the stream, which nobody may). A recorded graph counts when it is launched.
  uint64_t issued() const { return issued_; }
  int num_sms() const { return num_sms_; }
  int arch() const { return arch_; }             // 10 * major + minor: 80, 86, 89, 90, 100
  size_t max_smem() const { return max_smem_; }  // dynamic shared memory that a block may ask for
  bool capturing() const { return capturing_; }
  // Observers must be removed before they end.
  void add_observer(StreamObserver* observer) { observers_.push_back(observer); }
  void remove_observer(StreamObserver* observer) { std::erase(observers_, observer); }

 protected:
  void deallocate(void* data) override;

 private:
  // Two slots: one is filled while the other is copied. 16 MiB keep four reading threads busy (2
  // MiB a piece) and make the 20 us of a copy's start small beside its 0.6 ms at PCIe 4.0's 25
  // GB/s.
  static constexpr size_t kStagingBytes = size_t{16} << 20;
  static constexpr int kStagingSlots = 2;
  struct Staging {
    std::byte* data = nullptr;
    cudaEvent_t copied = nullptr, copied_beside = nullptr;  // on each of the streams
    size_t used = 0;
  };
  friend class CudaGraph;
  friend class CudaEvent;
  void notify_waited();
  void notify_graph_launched();
  // Pinned memory for `bytes` <= kStagingBytes.
  std::byte* stage(size_t bytes);

  int index_;
  cudaStream_t main_stream_ = nullptr;
  cudaStream_t side_stream_ = nullptr;  // made when first used
  cudaStream_t stream_ = nullptr;       // one of them
  mutable uint64_t issued_ = 0;
  int num_sms_ = 0;
  int arch_ = 0;
  size_t max_smem_ = 0;
  bool capturing_ = false;
  std::string name_;
  std::array<Staging, kStagingSlots> staging_;
  int staging_slot_ = 0;
  std::vector<cudaEvent_t>
      spare_events_;  // those of ended CudaEvents: making one costs a driver call
  std::vector<StreamObserver*> observers_;
};

}  // namespace shoal
