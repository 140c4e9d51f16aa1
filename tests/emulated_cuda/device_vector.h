// DeviceVector: a vector in device memory, of exactly its size.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/cuda/cuda_check.h"

namespace shoal::emulated {

template <typename T>
class DeviceVector {
 public:
  explicit DeviceVector(size_t size) : size_(size) {
    void* data = nullptr;
    SHOAL_CUDA_CHECK(cudaMalloc(&data, size * sizeof(T)));
    data_ = static_cast<T*>(data);
  }
  explicit DeviceVector(const std::vector<T>& values) : DeviceVector(values.size()) {
    SHOAL_CUDA_CHECK(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceVector() { cudaFree(data_); }
  DeviceVector(const DeviceVector&) = delete;

  T* data() const { return data_; }
  std::vector<T> host() const {  // waits for the default stream
    std::vector<T> values(size_);
    SHOAL_CUDA_CHECK(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

}  // namespace shoal::emulated
