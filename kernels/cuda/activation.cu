// silu_mul: one thread per pack of eight elements, reads and writes of 16 bytes. Bound by memory: 3
// elements moved per output. expf and an exact division, no fast forms: at 6 bytes per element
// there is time for some 50 instructions each, and the reference's bound holds over the whole
// range. Where an FP8 product follows, the same pass leaves the quantised twin of what it writes (7
// bytes per output instead of 6 and then 3).
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/rows.cuh"

namespace shoal {
namespace {

using namespace gpu;

// No __restrict__: out may be gate. A thread reads its pack before it writes it.
template <bool kTwin, typename T>
__global__ void silu_mul_kernel(const T* gate, const T* up, T* out, int64_t rows, int64_t dim,
                                int64_t gate_stride, int64_t up_stride, int64_t out_stride,
                                bool aligned, TwinView twin) {
  const int64_t packs = (dim + kPack - 1) / kPack;
  const int64_t item = flat_thread();
  const bool inside = item < rows * packs;
  const auto [row, pack] = divide(item, packs);
  const int64_t column = pack * kPack, left = dim - column;
  float g[kPack] = {}, u[kPack];
  if (inside) {
    load_pack(gate + row * gate_stride + column, left, aligned, g);
    load_pack(up + row * up_stride + column, left, aligned, u);
    // exp overflows to infinity for g < -88 and the quotient is then zero, as it should be.
#pragma unroll
    for (int i = 0; i < kPack; ++i) g[i] = g[i] / (1.0f + expf(-g[i])) * u[i];
    store_pack(out + row * out_stride + column, left, aligned, g);
  }
  if constexpr (kTwin) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) g[i] = to_f32(from_f32<T>(g[i]));
    store_twin(twin, g, inside, row, column, dim);
    if (blockIdx.x == gridDim.x - 1) pad_twin(twin, rows, dim);
  }
}

}  // namespace

void CudaOps::silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) {
  check_activation(gate, 2, "gate");
  check_activation(up, 2, "up");
  check_activation(out, 2, "out");
  SHOAL_CHECK(gate.dim(0) == up.dim(0) && gate.dim(1) == up.dim(1) && out.dim(0) == up.dim(0) &&
                  out.dim(1) == up.dim(1) && gate.dtype == up.dtype && out.dtype == up.dtype,
              "gate {}, up {}, out {}", gate.shape_string(), up.shape_string(), out.shape_string());
  const int64_t items = gate.dim(0) * packs_of(gate.dim(1));
  if (items == 0) return;
  const bool aligned = packs_aligned(gate) && packs_aligned(up) && packs_aligned(out);
  const TwinView twin = twin_.room_if_wanted(out);
  with_activation_type(out, [&](auto element) {
    using T = decltype(element);
    with_twin<T>(twin, [&](auto has_twin) {
      launch(silu_mul_kernel<has_twin.value, T>, grid_for(items), dim3(kRowThreads), 0, stream(),
             gate.as<const T>(), up.as<const T>(), out.as<T>(), gate.dim(0), gate.dim(1),
             gate.stride[0], up.stride[0], out.stride[0], aligned, twin);
    });
  });
  if (twin.codes != nullptr) twin_.keep(out);
}

}  // namespace shoal
