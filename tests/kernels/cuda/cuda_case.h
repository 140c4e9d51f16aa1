// What the tests of the CUDA verbs share: the device under test (a GPU, or the emulated one), tensors on
// it, and the schedules that every case runs under.
#pragma once

#include <catch2/catch.hpp>
#include <functional>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/kernels/support/host_cache.h"
#include "tests/kernels/support/reference.h"
#include "tests/kernels/support/test_data.h"

namespace shoal::test {

CudaDevice& cuda_device();
Ops& cuda_ops();

// A copy of a host tensor on the device, in memory of exactly its size (gaps between rows too), so that
// the emulation and compute-sanitizer see what reads or writes past it.
class OnDevice {
 public:
  OnDevice(const HostTensor& host);  // NOLINT(google-explicit-constructor): an argument of verbs
  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }
  HostTensor host() const;  // waits for the device

 private:
  HostTensor like_;
  Buffer memory_;
  Tensor view_;
};

// A cache on the device.
class CacheOnDevice {
 public:
  explicit CacheOnDevice(const HostCache& host);
  operator CacheTensor() const;  // NOLINT(google-explicit-constructor): an argument of verbs
  HostCache host() const;

 private:
  OnDevice data_;
  std::unique_ptr<OnDevice> scale_, rope_;
};

// A weight on the device.
class WeightOnDevice {
 public:
  explicit WeightOnDevice(const HostWeight& host);
  const Weight& weight() const { return weight_; }
  operator const Weight&() const { return weight_; }

 private:
  OnDevice data_;
  std::unique_ptr<OnDevice> scale_, min_;
  Weight weight_;
};

// Activations as the device may hold them.
inline const std::vector<DType> kActivations = {DType::kF32, DType::kBF16};

// The same expectation of a result that is stored as `type`: bfloat16 rounds by up to 2^-8 relative.
Expected stored_as(Expected expected, DType type);

// Runs body once on a GPU; on the emulation once per thread-order seed, which permutes the order in which
// a block's threads run: a missing barrier gives another result in one of them.
void for_each_schedule(const std::function<void()>& body);

}  // namespace shoal::test
