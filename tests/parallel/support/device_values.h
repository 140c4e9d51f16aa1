// Host values in the memory of the world's device, and back.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/tensor.h"
#include "tests/parallel/support/world.h"

namespace shoal::test {

template <typename T>
constexpr DType kTypeOf = DType::kF32;
template <>
inline constexpr DType kTypeOf<int32_t> = DType::kI32;
template <>
inline constexpr DType kTypeOf<BF16> = DType::kBF16;

template <typename T>
std::vector<T> to_host(const Tensor& tensor) {
  SHOAL_CHECK(tensor.contiguous() && tensor.dtype == kTypeOf<T>, "{}", tensor.shape_string());
  std::vector<T> values(tensor.num_elements());
  world().device->copy_to_host(values.data(), tensor.data, tensor.num_bytes());
  return values;
}

// A tensor of its own memory that begins as a copy of `values`.
template <typename T>
class OnDevice {
 public:
  OnDevice(const std::vector<T>& values, std::initializer_list<int64_t> dims)
      : memory_(world().device->allocate(values.size() * sizeof(T))),
        tensor_(memory_.data(), kTypeOf<T>, dims) {
    SHOAL_CHECK(tensor_.num_elements() == std::ssize(values));
    world().device->copy_to_device(memory_.data(), values.data(), values.size() * sizeof(T));
  }
  // Without a given content (zeros).
  explicit OnDevice(std::initializer_list<int64_t> dims)
      : OnDevice(std::vector<T>(Tensor(nullptr, kTypeOf<T>, dims).num_elements()), dims) {}

  operator const Tensor&() const { return tensor_; }  // NOLINT(google-explicit-constructor)
  const Tensor& tensor() const { return tensor_; }
  std::vector<T> host() const { return to_host<T>(tensor_); }

 private:
  Buffer memory_;
  Tensor tensor_;
};

}  // namespace shoal::test
