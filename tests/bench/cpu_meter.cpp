#include <fmt/format.h>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/bench/meter.h"

namespace shoal::bench {
namespace {

class CpuMeter final : public Meter {
 public:
  explicit CpuMeter(const MeterOptions& options)
      : options_(options), device_(make_cpu_device()), ops_(make_cpu_ops(options.threads)) {
    ThreadPool pool(options.threads);
    bandwidth_ = read_bandwidth(pool, options.repeats, options.clock);
    math_rate_ = fma_peak(pool, options.repeats, options.clock);
  }

  Device& device() override { return *device_; }
  Ops& ops() override { return *ops_; }
  DType activation() const override { return DType::kF32; }
  int64_t cold_bytes() const override { return options_.tiny ? 1 << 16 : int64_t{256} << 20; }
  std::string name() const override {
    return fmt::format("cpu: {} thread(s), {}", options_.threads, cpu_target_name());
  }

  double seconds(const std::function<void()>& call, int sets) override {
    // Enough calls for 30 ms, so that neither the clock nor the hand-over counts.
    const double least = options_.tiny ? 0 : 0.03;
    call();  // pages and scratch
    std::vector<double> seconds;
    for (int r = 0; r < options_.repeats; ++r) {
      int calls = 0;
      const double start = now(options_.clock);
      double elapsed = 0;
      do {
        call();
        ++calls;
        elapsed = now(options_.clock) - start;
      } while (elapsed < least);
      seconds.push_back(elapsed / calls);
    }
    return median(seconds);
  }

 private:
  MeterOptions options_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Ops> ops_;
};

}  // namespace

std::unique_ptr<Meter> make_cpu_meter(const MeterOptions& options) {
  return std::make_unique<CpuMeter>(options);
}

}  // namespace shoal::bench
