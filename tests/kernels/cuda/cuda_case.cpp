#define CATCH_CONFIG_EXTERNAL_INTERFACES  // for the listener
#include "tests/kernels/cuda/cuda_case.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

#ifdef SHOAL_CUDA_EMULATED
#include <emulated_cuda/control.h>
#endif

namespace shoal::test {

namespace {
// On a machine without a GPU the program ends as skipped.
struct SkipWithoutGpu : Catch::TestEventListenerBase {
  using TestEventListenerBase::TestEventListenerBase;
  void testRunStarting(const Catch::TestRunInfo&) override {
    if (cuda_device_count() > 0) return;
    std::printf("SKIPPED: no GPU (%s)\n", cuda_summary().c_str());
    std::fflush(stdout);
    std::_Exit(0);
  }
};
CATCH_REGISTER_LISTENER(SkipWithoutGpu)
}  // namespace

CudaDevice& cuda_device() {
  static const std::unique_ptr<CudaDevice> device = make_cuda_device(0);
  return *device;
}

Ops& cuda_ops() {
  static const std::unique_ptr<Ops> ops = make_cuda_ops(cuda_device());
  return *ops;
}

OnDevice::OnDevice(const HostTensor& host)
    : like_(host.clone()), memory_(cuda_device().allocate(host.memory().size())), view_(host.view()) {
  cuda_device().copy_to_device(memory_.data(), host.memory().data(), host.memory().size());
  view_.data = memory_.data();
}

HostTensor OnDevice::host() const {
  HostTensor result = like_.clone();
  cuda_device().copy_to_host(result.memory().data(), memory_.data(), result.memory().size());
  return result;
}

CacheOnDevice::CacheOnDevice(const HostCache& host) : data_(host.data) {
  if (host.scale.view().defined()) scale_ = std::make_unique<OnDevice>(host.scale);
  if (host.rope.view().defined()) rope_ = std::make_unique<OnDevice>(host.rope);
}

CacheOnDevice::operator CacheTensor() const {
  return {data_, scale_ ? scale_->view() : Tensor(), rope_ ? rope_->view() : Tensor()};
}

HostCache CacheOnDevice::host() const {
  return {data_.host(), scale_ ? scale_->host() : HostTensor(), rope_ ? rope_->host() : HostTensor()};
}

WeightOnDevice::WeightOnDevice(const HostWeight& host) : data_(host.data), weight_(host.weight) {
  weight_.data = data_.view();
  if (host.weight.scale.defined()) {
    scale_ = std::make_unique<OnDevice>(host.scale);
    weight_.scale = scale_->view();
  }
  if (host.weight.min.defined()) {
    min_ = std::make_unique<OnDevice>(host.min);
    weight_.min = min_->view();
  }
}

Expected stored_as(Expected expected, DType type) {
  if (type != DType::kBF16) return expected;
  for (size_t i = 0; i < expected.value.size(); ++i) {
    // Half a unit in the last of 8 significant bits (2^-7 at 1); and of what is subnormal in bfloat16,
    // half of the smallest.
    expected.bound[i] += std::fabs(expected.value[i]) * 0x1p-8 * 1.01 + 0x1p-134;
  }
  return expected;
}

void for_each_schedule(const std::function<void()>& body) {
#ifdef SHOAL_CUDA_EMULATED
  for (const unsigned seed : {0u, 1u, 2u}) {
    emulated::set_thread_order_seed(seed);
    INFO("thread order " << seed);
    body();
  }
  emulated::set_thread_order_seed(0);
#else
  body();
#endif
}

}  // namespace shoal::test
