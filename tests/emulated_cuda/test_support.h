// What the emulation's own tests share.
#pragma once

#include <catch2/catch.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "emulated_cuda/control.h"
#include "kernels/cuda/gpu.h"

// The tag of tests with a race, which only their results may show. The thread sanitizer's build expects
// its report of them (CMakeLists.txt).
#ifdef __SANITIZE_THREAD__
#define SHOAL_RACE "[.race]"
#else
#define SHOAL_RACE "[race]"
#endif

namespace shoal::emulated {

// A vector in device memory, of exactly its size.
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

class Stream {
 public:
  Stream() { SHOAL_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }  // NOLINT: an argument of calls

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { SHOAL_CUDA_CHECK(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }  // NOLINT: an argument of calls

 private:
  cudaEvent_t event_ = nullptr;
};

// Undoes at the end of a test what it injected.
struct Reset {
  ~Reset() { reset(); }
};

// What `body` writes to stderr, where the emulation's reports go.
std::string reported(const std::function<void()>& body);

}  // namespace shoal::emulated
