// The quantised twin (kernels/cuda/quantized_twin.h): norms and silu_mul that quantise in the pass
// that writes give the bits of those that do not; products of the same rows share a quantisation;
// and nothing that changes the rows goes unnoticed. Against CudaOps that have seen no FP8 product,
// which quantise for each product.
#include <functional>
#include <numeric>

#include "kernels/cuda/cuda_ops.h"
#include "tests/kernels/cuda/cuda_case.h"
#include "tests/support/skip.h"

#ifdef SHOAL_CUDA_EMULATED
#include "tests/emulated_cuda/control.h"
#endif

namespace shoal::test {
namespace {

#define SHOAL_NEEDS_FP8_GEMM() \
  if (cuda_device().arch() != 90) SHOAL_SKIP("FP8 block scales need sm_90")

std::unique_ptr<Ops> new_ops() { return make_cuda_ops(cuda_device()); }

HostTensor zeros(DType dtype, std::initializer_list<int64_t> dims) {
  HostTensor tensor(dtype, dims);
  std::memset(tensor.memory().data(), 0, tensor.memory().size());
  return tensor;
}

// A place for products of up to 64 tokens and 64 columns. Made before what is tested: making it is
// a copy to the device, behind which no twin holds.
const OnDevice& product_memory() {
  static const OnDevice memory(zeros(DType::kBF16, {64, 64}));
  return memory;
}

std::vector<std::byte> linear_bytes(Ops& ops, const Tensor& x, const Weight& w) {
  const Tensor out = product_memory().view().slice(0, 0, x.dim(0)).slice(1, 0, w.n());
  ops.linear(x, w, Tensor(), out);
  const HostTensor all = product_memory().host();
  HostTensor host(DType::kBF16, {x.dim(0), w.n()});
  for (int64_t t = 0; t < x.dim(0); ++t) {
    std::memcpy(host.view().row<BF16>(t), all.view().row<BF16>(t), w.n() * sizeof(BF16));
  }
  return host.bytes();
}

// How often x was quantised by a kernel of its own since the last call; -1 where that cannot be
// known.
int quantisations() {
#ifdef SHOAL_CUDA_EMULATED
  int count = 0;
  product_memory();
  cuda_device().synchronize();
  for (const std::string& name : emulated::take_trace()) {
    count += name.find("::quantize_kernel") != std::string::npos;
  }
  return count;
#else
  return -1;
#endif
}

void expect_quantisations(int expected) {
  const int count = quantisations();
  if (count >= 0) CHECK(count == expected);
}

TEST_CASE("cuda twin: norms and silu_mul quantise what they write, bit for bit", "[cuda][twin]") {
  SHOAL_NEEDS_FP8_GEMM();
  Random random(1);
  // Half a warp, whole ones, and rows that are read again; tokens that are no multiple of 4.
  for (const auto& [tokens, k] :
       std::vector<std::pair<int64_t, int64_t>>{{9, 128}, {12, 640}, {34, 384}, {10, 16512}}) {
    const HostWeight host_w = random_weight(random, DType::kF8E4M3, 64, k);
    const WeightOnDevice w(host_w);
    const HostTensor norm = random.tensor(DType::kF32, {k});
    const OnDevice norm_device(norm);
    // `plain` never sees a product, and `products` never a norm.
    const std::unique_ptr<Ops> fused = new_ops(), plain = new_ops(), products = new_ops();
    linear_bytes(*fused, OnDevice(random.tensor(DType::kBF16, {tokens, k})), w);
    for_each_schedule([&] {
      for (const DType from : kActivations) {
        INFO(fmt::format("{} tokens, {} columns, from {}", tokens, k, dtype_name(from)));
        // With a group of zeros and one of other magnitude.
        HostTensor x = random.tensor(from, {tokens, k}),
                   up = random.tensor(DType::kBF16, {tokens, k});
        std::memset(x.view().data, 0, 128 * dtype_size(from));
        for (int64_t i = 0; i < 128; ++i) up.view().row<BF16>(1)[i] = to_bf16(1e-3f * i);
        const HostTensor residual = random.tensor(DType::kBF16, {tokens, k});
        const std::vector<std::function<void(Ops&, const Tensor&)>> verbs = {
            [&](Ops& ops, const Tensor& out) {
              ops.rms_norm(OnDevice(x), norm_device, 1e-6f, out);
            },
            [&](Ops& ops, const Tensor& out) {
              ops.add_rms_norm(OnDevice(x), OnDevice(residual), norm_device, 1e-6f, out);
            },
            [&](Ops& ops, const Tensor& out) {
              const OnDevice gate(up);
              cuda_device().copy_on_device(out.data, gate.view().data, out.num_bytes());
              ops.silu_mul(out, gate, out);
            }};
        for (size_t v = 0; v < verbs.size(); ++v) {
          INFO("verb " << v);
          const OnDevice written(zeros(DType::kBF16, {tokens, k})),
              alone(zeros(DType::kBF16, {tokens, k}));
          quantisations();
          verbs[v](*plain, alone);
          const auto expected = linear_bytes(*products, alone, w);
          expect_quantisations(1);
          verbs[v](*fused, written);
          CHECK(linear_bytes(*fused, written, w) == expected);
          expect_quantisations(0);
          CHECK(written.host().bytes() == alone.host().bytes());
        }
      }
    });
  }
}

TEST_CASE("cuda twin: what reads the same rows shares a quantisation", "[cuda][twin]") {
  SHOAL_NEEDS_FP8_GEMM();
  Random random(2);
  const HostWeight host = random_weight(random, DType::kF8E4M3, 64, 256);
  const HostWeight router = random_weight(random, DType::kF32, 16, 256);
  const WeightOnDevice w(host), r(router);
  const OnDevice x(random.tensor(DType::kBF16, {20, 256}));
  const OnDevice few(random.tensor(DType::kBF16, {kFewRows, 256}));
  const std::unique_ptr<Ops> ops = new_ops();
  quantisations();
  const auto first = linear_bytes(*ops, x, w);
  linear_bytes(*ops, x, r);  // reads x only
  CHECK(linear_bytes(*ops, x, w) == first);
  expect_quantisations(1);
  linear_bytes(*ops, few, w);  // our own kernels, which do not quantise
  expect_quantisations(0);
  CHECK(linear_bytes(*ops, x, w) == first);
  expect_quantisations(1);
  // Other rows of the same memory are other rows.
  linear_bytes(*ops, x.view().slice(0, 0, 12), w);
  expect_quantisations(1);
}

TEST_CASE("cuda twin: rows that were changed are quantised again", "[cuda][twin]") {
  SHOAL_NEEDS_FP8_GEMM();
  Random random(3);
  constexpr int64_t kTokens = 12, kDim = 256;
  const HostWeight host = random_weight(random, DType::kF8E4M3, 64, kDim);
  const HostWeight square = random_weight(random, DType::kBF16, kDim, kDim);
  const WeightOnDevice w(host), to_x(square);
  const HostTensor before = random.tensor(DType::kBF16, {kTokens, kDim});
  const HostTensor after = random.tensor(DType::kBF16, {kTokens, kDim});
  const OnDevice x(before), source(after), norm(random.tensor(DType::kF32, {kDim}));
  const std::unique_ptr<Ops> ops = new_ops(), fresh = new_ops();
  CudaDevice& device = cuda_device();
  const size_t bytes = x.view().num_bytes();
  const auto graph = device.capture([&] { ops->copy(source, x); });
  const std::vector<std::function<void()>> changes = {
      [&] { ops->copy(source, x); },
      [&] { ops->add(source, x); },
      [&] { ops->rms_norm(source, norm, 1e-6f, x); },
      [&] { ops->silu_mul(source, source, x); },
      [&] { ops->linear(source, to_x, Tensor(), x); },  // reads other rows, writes these
      [&] { ops->linear(source, w, Tensor(), x.view().slice(1, 0, 64)); },
      [&] { device.copy_to_device(x.view().data, after.view().data, bytes); },
      [&] { device.copy_on_device(x.view().data, source.view().data, bytes); },
      [&] { device.zero(x.view().data, bytes); },
      [&] { graph->launch(); },
      [&] {  // what a collective does: it asks for the stream
        cudaMemcpyAsync(x.view().data, source.view().data, bytes, cudaMemcpyDeviceToDevice,
                        device.stream());
      },
      [&] {
        device.beside(*device.record(), [&] {
          ops->gather_rows(source, OnDevice(HostTensor::ints({1}, {3})), x.view().slice(0, 2, 3));
        });
        device.synchronize();
      }};
  for (size_t i = 0; i < changes.size(); ++i) {
    INFO("change " << i);
    device.copy_to_device(x.view().data, before.view().data, bytes);
    const auto old = linear_bytes(*ops, x, w);
    changes[i]();
    const auto now = linear_bytes(*ops, x, w);
    CHECK(now == linear_bytes(*fresh, x, w));
    CHECK(now != old);
  }
}

TEST_CASE("cuda twin: a recorded step fills and reads its own", "[cuda][twin]") {
  SHOAL_NEEDS_FP8_GEMM();
  Random random(4);
  const HostWeight host = random_weight(random, DType::kF8E4M3, 64, 256);
  const WeightOnDevice w(host);
  const OnDevice x(random.tensor(DType::kBF16, {16, 256})), norm(random.tensor(DType::kF32, {256}));
  const OnDevice h(zeros(DType::kBF16, {16, 256})), out(zeros(DType::kBF16, {16, 64}));
  const OnDevice other(random.tensor(DType::kBF16, {32, 256}));
  const std::unique_ptr<Ops> ops = new_ops();
  const auto step = [&] {
    ops->rms_norm(x, norm, 1e-6f, h);
    ops->linear(h, w, Tensor(), out);
  };
  step();
  const auto expected = out.host().bytes();
  step();  // now in one pass
  CHECK(out.host().bytes() == expected);
  const auto graph = cuda_device().capture(step);
  // Recorded and not run: the twin that was kept is none.
  ops->copy(x, h);
  const auto unnormed = linear_bytes(*ops, h, w);
  CHECK(unnormed == linear_bytes(*new_ops(), x, w));
  for (int i = 0; i < 2; ++i) {
    linear_bytes(*ops, other, w);
    cuda_device().zero(out.view().data, out.view().num_bytes());
    graph->launch();
    CHECK(out.host().bytes() == expected);
    CHECK(linear_bytes(*ops, h, w) == expected);
  }
}

}  // namespace
}  // namespace shoal::test
