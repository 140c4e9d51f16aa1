// Times verbs on a GPU by events around a recorded graph of many calls: what counts is the device's
// time in a step that is replayed, and not how fast the host issues it.
#include <cuda_runtime_api.h>

#include <cmath>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/bench/device_data.h"
#include "tests/bench/meter.h"

namespace shoal::bench {
namespace {

struct Event {
  Event() { SHOAL_CUDA_CHECK(cudaEventCreate(&event)); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  cudaEvent_t event = nullptr;
};

class CudaMeter final : public Meter {
 public:
  explicit CudaMeter(const MeterOptions& options)
      : options_(options), device_(make_cuda_device(0)), ops_(make_cuda_ops(*device_)) {
    int l2 = 0;
    SHOAL_CUDA_CHECK(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device_->index()));
    cold_bytes_ = options.tiny ? 1 << 16 : 4 * std::max<int64_t>(l2, 32 << 20);
    bandwidth_ = copy_bandwidth();
    math_rate_ = matrix_rate();
  }

  Device& device() override { return *device_; }
  Ops& ops() override { return *ops_; }
  DType activation() const override { return DType::kBF16; }
  int64_t cold_bytes() const override { return cold_bytes_; }
  std::string name() const override { return device_->name(); }

  double seconds(const std::function<void()>& call, int sets) override {
    // Eagerly first: scratch, plans and expert tables are made at their first use, which must not
    // be while a graph is recorded.
    for (int i = 0; i < sets; ++i) call();
    const double rough = timed([&] { call(); });
    // A graph of about 2 ms, so that its start (some us) and the event's resolution (0.5 us) do not
    // count.
    constexpr double kGraphSeconds = 2e-3;
    constexpr int kMostCalls = 512;
    const double wanted = options_.tiny ? 1 : std::min(kGraphSeconds / rough, double{kMostCalls});
    const int calls = sets * std::max(1, static_cast<int>(std::ceil(wanted / sets)));
    const std::unique_ptr<DeviceGraph> graph = device_->capture([&] {
      for (int i = 0; i < calls; ++i) call();
    });
    graph->launch();
    std::vector<double> seconds;
    for (int r = 0; r < options_.repeats; ++r) {
      seconds.push_back(timed([&] { graph->launch(); }) / calls);
    }
    device_->synchronize();
    return median(seconds);
  }

  double seconds_issued(const std::function<void()>& call) override {
    const int calls = options_.tiny ? 1 : 20;
    call();
    std::vector<double> seconds;
    for (int r = 0; r < options_.repeats; ++r) {
      const double all = timed([&] {
        for (int i = 0; i < calls; ++i) call();
      });
      seconds.push_back(all / calls);
    }
    return median(seconds);
  }

 private:
  double timed(const std::function<void()>& work) {
    SHOAL_CUDA_CHECK(cudaEventRecord(begin_.event, device_->stream()));
    work();
    SHOAL_CUDA_CHECK(cudaEventRecord(end_.event, device_->stream()));
    SHOAL_CUDA_CHECK(cudaEventSynchronize(end_.event));
    float milliseconds = 0;
    SHOAL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin_.event, end_.event));
    // Emulated events may have the same time.
    return std::max(1e-3 * static_cast<double>(milliseconds), 1e-9);
  }

  double copy_bandwidth() {
    const int64_t bytes = options_.tiny ? 1 << 16 : int64_t{1} << 30;
    DeviceData data(*device_);
    const Tensor from = data.values(DType::kI8, {bytes}), to = data.values(DType::kI8, {bytes});
    return 2.0 * static_cast<double>(bytes) /
           seconds([&] { device_->copy_on_device(to.data, from.data, bytes); }, 1);
  }

  double matrix_rate() {
    const int64_t n = options_.tiny ? 128 : 8192;
    DeviceData data(*device_);
    CublasLt cublaslt(*device_);
    Workspace scratch(*device_);
    const Tensor x = data.values(DType::kBF16, {n, n}), out = data.values(DType::kBF16, {n, n});
    const Weight w = data.weight(DType::kBF16, n, n);
    cublaslt.tune(x, w, {}, out, scratch);
    return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) /
           seconds(
               [&] {
                 SHOAL_CHECK(cublaslt.matmul(x, w, {}, out, scratch),
                             "cuBLASLt has no BF16 product");
               },
               1);
  }

  MeterOptions options_;
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<Ops> ops_;
  Event begin_, end_;
  int64_t cold_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Meter> make_cuda_meter(const MeterOptions& options) {
  return std::make_unique<CudaMeter>(options);
}

}  // namespace shoal::bench
