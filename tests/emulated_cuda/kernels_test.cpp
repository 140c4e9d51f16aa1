#include <catch2/catch.hpp>

#include "kernels/cuda/gpu.h"
#include "emulated_cuda/control.h"
#include "emulated_cuda/device_vector.h"

namespace shoal::gpu {
namespace {

using emulated::DeviceVector;

// ---- Kernels under test ----------------------------------------------------------------------------

__global__ void __launch_bounds__(256) reverse_in_block(const float* in, float* out) {
  __shared__ float buffer[256];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  buffer[threadIdx.x] = in[i];
  __syncthreads();
  out[i] = buffer[blockDim.x - 1 - threadIdx.x];
}

template <typename T>
__global__ void block_sums(const T* in, T* out) {
  __shared__ T scratch[32];
  const T sum = block_sum(in[blockIdx.x * blockDim.x + threadIdx.x], scratch);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

TEST_CASE("a kernel with a barrier and shared memory runs") {
  std::vector<float> values(1024);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  for (const unsigned seed : {0u, 1u, 2u}) {
    emulated::set_thread_order_seed(seed);
    DeviceVector<float> in(values), out(1024);
    launch(reverse_in_block, 4, 256, 0, nullptr, in.data(), out.data());
    const std::vector<float> result = out.host();
    for (size_t i = 0; i < values.size(); ++i) {
      REQUIRE(result[i] == static_cast<float>(i / 256 * 256 + 255 - i % 256));
    }
    DeviceVector<float> sums(4);
    launch(block_sums<float>, 4, 256, 0, nullptr, in.data(), sums.data());
    REQUIRE(sums.host() == std::vector<float>{32640, 98176, 163712, 229248});
  }
  emulated::reset();
}

}  // namespace
}  // namespace shoal::gpu
