// CudaDevice: what it refuses, and what it leaves behind.
#include <catch2/catch.hpp>

#include "kernels/cuda/cuda_backend.h"
#include "tests/kernels/cuda/cuda_case.h"
#ifdef SHOAL_CUDA_EMULATED
#include "tests/emulated_cuda/control.h"
#endif

namespace shoal::test {
namespace {

TEST_CASE("a capture that is lost leaves no error to the next launch", "[cuda][device]") {
  Random random{1};
  const HostTensor x = random.tensor(DType::kF32, {2, 16});
  OnDevice from(x), sum(x);
  CHECK_THROWS_AS(cuda_device().capture([&] {
    cudaStreamSynchronize(cuda_device().stream());  // not allowed here, and loses the capture
    throw_invalid("given up");
  }),
                  InvalidInput);
  CHECK_FALSE(cuda_device().capturing());
  cuda_ops().add(from, sum);
  cuda_device().synchronize();
}

#ifdef SHOAL_CUDA_EMULATED
TEST_CASE("a binary without kernels for the GPU is refused before the first launch",
          "[cuda][device]") {
  emulated::set_kernel_images(false);
  CHECK_THROWS_WITH(make_cuda_device(0), Catch::Contains("no kernels for GPU 0") &&
                                             Catch::Contains("-DCMAKE_CUDA_ARCHITECTURES=90"));
  CHECK_THROWS_AS(make_cuda_device(0), InvalidInput);
  emulated::set_kernel_images(true);
  CHECK(make_cuda_device(0)->arch() == 90);
}
#endif

}  // namespace
}  // namespace shoal::test
