// What kernels can rely on: barriers, collectives, tensor-core forms, asynchronous copies, atomics.
#include "emulated_cuda/test_support.h"

#include <random>

namespace shoal::gpu {
namespace {

using emulated::DeviceVector;
using emulated::reset;
using emulated::set_thread_order_seed;

template <typename T>
std::vector<T> random_values(size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<T> values(size);
  // Small integers: sums of products are exact in any order.
  for (T& value : values) value = T(static_cast<float>(static_cast<int>(random() % 17) - 8));
  return values;
}

// Runs under several orders of threads, on a device vector of `size` results.
template <typename T, typename Launch>
void for_each_order(size_t size, const std::vector<T>& expected, const Launch& launch_into) {
  for (const unsigned seed : {0u, 1u, 2u, 3u}) {
    INFO("thread order " << seed);
    set_thread_order_seed(seed);
    DeviceVector<T> out(size);
    launch_into(out.data());
    CHECK(out.host() == expected);
  }
  reset();
}

// ---- Barriers and shared memory --------------------------------------------------------------------

template <bool kBarrier>
__global__ void __launch_bounds__(256) reverse_in_block(const float* in, float* out) {
  __shared__ float buffer[256];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  buffer[threadIdx.x] = in[i];
  if (kBarrier) __syncthreads();
  out[i] = buffer[blockDim.x - 1 - threadIdx.x];
}

TEST_CASE("emulated: shared memory behind a barrier") {
  const std::vector<float> values = random_values<float>(4 * 256, 1);
  std::vector<float> expected(values.size());
  for (size_t i = 0; i < values.size(); ++i) expected[i] = values[i / 256 * 256 + 255 - i % 256];
  DeviceVector<float> in(values);
  for_each_order(values.size(), expected, [&](float* out) {
    launch(reverse_in_block<true>, 4, 256, 0, nullptr, in.data(), out);
  });
}

TEST_CASE("emulated: without the barrier no order of threads is right", SHOAL_RACE) {
  const std::vector<float> values = random_values<float>(2 * 64, 1);
  std::vector<float> expected(values.size());
  for (size_t i = 0; i < values.size(); ++i) expected[i] = values[i / 64 * 64 + 63 - i % 64];
  DeviceVector<float> in(values);
  for (const unsigned seed : {0u, 1u, 2u}) {
    set_thread_order_seed(seed);
    DeviceVector<float> out(values.size());
    launch(reverse_in_block<false>, 2, 64, 0, nullptr, in.data(), out.data());
    CHECK(out.host() != expected);
  }
  reset();
}

__global__ void counting_barriers(int* out) {
  const int i = threadIdx.x;
  out[3 * i] = __syncthreads_count(i % 3 == 0);
  out[3 * i + 1] = __syncthreads_or(i == 77);
  out[3 * i + 2] = __syncthreads_and(i != 77);
}

TEST_CASE("emulated: barriers that count") {
  std::vector<int> expected;
  for (int i = 0; i < 100; ++i) expected.insert(expected.end(), {34, 1, 0});
  for_each_order(300, expected,
                 [&](int* out) { launch(counting_barriers, 1, 100, 0, nullptr, out); });
}

__global__ void read_dynamic(unsigned* out) {
  SHOAL_DYN_SMEM(unsigned, smem);
  out[blockIdx.x] = smem[threadIdx.x];
  smem[threadIdx.x] = 7;
}

TEST_CASE("emulated: dynamic shared memory is NaN at the start of every block") {
  for_each_order(3, std::vector<unsigned>(3, 0xffffffffu),
                 [&](unsigned* out) { launch(read_dynamic, 3, 1, 4, nullptr, out); });
}

__global__ void coordinates(int* out) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

TEST_CASE("emulated: three dimensions of blocks and threads") {
  std::vector<int> expected;
  for (int block = 0; block < 24; ++block) {
    for (int thread = 0; thread < 30; ++thread) expected.push_back(block * 1000 + thread);
  }
  for_each_order(24 * 30, expected, [&](int* out) {
    launch(coordinates, dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, out);
  });
}

// ---- Warp collectives ------------------------------------------------------------------------------

constexpr int kShuffles = 12;

template <typename T>
__global__ void shuffles(const T* in, T* out) {
  const int lane = threadIdx.x % kWarp;
  const T x = in[threadIdx.x];
  T* row = out + threadIdx.x * kShuffles;
  row[0] = __shfl_sync(kFullMask, x, 5);
  row[1] = __shfl_sync(kFullMask, x, lane + 3, 8);
  row[2] = __shfl_up_sync(kFullMask, x, 3);
  row[3] = __shfl_up_sync(kFullMask, x, 3, 16);
  row[4] = __shfl_down_sync(kFullMask, x, 5);
  row[5] = __shfl_down_sync(kFullMask, x, 5, 8);
  row[6] = __shfl_xor_sync(kFullMask, x, 9);
  row[7] = __shfl_xor_sync(kFullMask, x, 8, 8);
  row[8] = warp_sum(x);
  row[9] = warp_max(x);
  // Parts of the warp on their own.
  if (lane < 20) {
    row[10] = __shfl_sync(0x000fffffu, x, 19);
  } else {
    row[10] = __shfl_sync(0xfff00000u, x, 31);
  }
  __syncwarp();
  row[11] = x;
}

template <typename T>
void check_shuffles() {
  const std::vector<T> in = random_values<T>(96, 2);
  std::vector<T> expected;
  for (int i = 0; i < 96; ++i) {
    const int lane = i % 32, warp = i - lane;
    const auto at = [&](int source) { return in[static_cast<size_t>(warp + source)]; };
    const T own = at(lane);
    T sum = 0, most = at(0);
    for (int other = 0; other < 32; ++other) {
      sum = static_cast<T>(sum + at(other));
      most = std::max(most, at(other));
    }
    expected.insert(expected.end(),
                    {at(5), at(lane / 8 * 8 + (lane + 3) % 8), lane < 3 ? own : at(lane - 3),
                     lane % 16 < 3 ? own : at(lane - 3), lane > 26 ? own : at(lane + 5),
                     lane % 8 > 2 ? own : at(lane + 5), at(lane ^ 9),
                     (lane ^ 8) > (lane | 7) ? own : at(lane ^ 8), sum, most,
                     lane < 20 ? at(19) : at(31), own});
  }
  DeviceVector<T> device_in(in);
  for_each_order(expected.size(), expected, [&](T* out) {
    launch(shuffles<T>, 1, 96, 0, nullptr, device_in.data(), out);
  });
}

TEST_CASE("emulated: shuffles, sums and maxima of a warp") {
  check_shuffles<float>();
  check_shuffles<double>();
  check_shuffles<int>();
  check_shuffles<long long>();
}

__global__ void votes(unsigned* out) {
  const int lane = threadIdx.x;
  unsigned* row = out + lane * 5;
  row[0] = __ballot_sync(kFullMask, lane % 5 == 0);
  row[1] = __any_sync(kFullMask, lane == 9);
  row[2] = __all_sync(kFullMask, lane != 9);
  row[3] = __match_any_sync(kFullMask, lane % 2 == 0 ? 1.5f : 2.5f);
  row[4] = lane < 4 ? __ballot_sync(0xfu, lane == 2) : 0;
}

TEST_CASE("emulated: votes of a warp") {
  std::vector<unsigned> expected;
  for (unsigned lane = 0; lane < 32; ++lane) {
    expected.insert(expected.end(), {0x42108421u, 1, 0, lane % 2 == 0 ? 0x55555555u : 0xaaaaaaaau,
                                     lane < 4 ? 4u : 0u});
  }
  for_each_order(expected.size(), expected, [&](unsigned* out) { launch(votes, 1, 32, 0, nullptr, out); });
}

template <typename T>
__global__ void block_sums(const T* in, T* out) {
  __shared__ T scratch[32];
  const T sum = block_sum(in[blockIdx.x * blockDim.x + threadIdx.x], scratch);
  const T most = block_max(in[blockIdx.x * blockDim.x + threadIdx.x], scratch);
  if (threadIdx.x == 0) out[blockIdx.x] = sum + most * 1024;
}

TEST_CASE("emulated: sums and maxima of a block") {
  const std::vector<float> in = random_values<float>(3 * 192, 3);
  std::vector<float> expected;
  for (size_t block = 0; block < 3; ++block) {
    float sum = 0, most = in[block * 192];
    for (size_t i = 0; i < 192; ++i) {
      sum += in[block * 192 + i];
      most = std::max(most, in[block * 192 + i]);
    }
    expected.push_back(sum + most * 1024);
  }
  DeviceVector<float> device_in(in);
  for_each_order(3, expected, [&](float* out) {
    launch(block_sums<float>, 3, 192, 0, nullptr, device_in.data(), out);
  });
}

// ---- Tensor cores ----------------------------------------------------------------------------------

// D = A B with A [16, 16], B [16, 8]: from registers, and through ldmatrix, where B [k, n] row-major in
// shared memory is read transposed and A plain.
__global__ void product_by_registers(const bf16* a, const bf16* b, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto pair = [](bf16 low, bf16 high) { return pack_bf16(to_f32(low), to_f32(high)); };
  uint32_t fa[4], fb[2];
  float fd[4] = {1, 2, 3, 4};
  for (int i = 0; i < 4; ++i) {
    const bf16* at = a + (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
    fa[i] = pair(at[0], at[1]);
  }
  for (int i = 0; i < 2; ++i) fb[i] = pair(b[(2 * t + 8 * i) * 8 + g], b[(2 * t + 8 * i + 1) * 8 + g]);
  mma_m16n8k16_bf16(fd, fa, fb);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = fd[i];
}

__global__ void product_by_ldmatrix(const bf16* a, const bf16* b, float* d) {
  SHOAL_DYN_SMEM(bf16, smem);
  bf16 *sa = smem, *sb = smem + 256;
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 8; ++i) sa[lane * 8 + i] = a[lane * 8 + i];
  for (int i = 0; i < 4; ++i) sb[lane * 4 + i] = b[lane * 4 + i];
  __syncwarp();
  uint32_t fa[4], fb[4];
  // Matrices 0 and 1 are rows 0-7 and 8-15 of columns 0-7; 2 and 3 of columns 8-15.
  ldmatrix_x4(fa, sa + (lane % 16) * 16 + lane / 16 * 8);
  ldmatrix_x4_trans(fb, sb + (lane % 16) * 8);  // two 8x8 matrices, each twice
  float fd[4] = {1, 2, 3, 4};
  const uint32_t b_fragments[2] = {fb[0], fb[1]};
  mma_m16n8k16_bf16(fd, fa, b_fragments);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = fd[i];
}

TEST_CASE("emulated: mma against scalar arithmetic, its operands from registers and by ldmatrix") {
  const std::vector<bf16> a = random_values<bf16>(16 * 16, 4), b = random_values<bf16>(16 * 8, 5);
  std::vector<float> expected;
  for (size_t m = 0; m < 16; ++m) {
    for (size_t n = 0; n < 8; ++n) {
      float sum = static_cast<float>(1 + 2 * (m / 8) + n % 2);  // what the accumulators held
      for (size_t k = 0; k < 16; ++k) sum += to_f32(a[m * 16 + k]) * to_f32(b[k * 8 + n]);
      expected.push_back(sum);
    }
  }
  DeviceVector<bf16> device_a(a), device_b(b);
  for_each_order(128, expected, [&](float* d) {
    launch(product_by_registers, 1, 32, 0, nullptr, device_a.data(), device_b.data(), d);
  });
  for_each_order(128, expected, [&](float* d) {
    launch(product_by_ldmatrix, 1, 32, 768, nullptr, device_a.data(), device_b.data(), d);
  });
}

// ---- Asynchronous copies ---------------------------------------------------------------------------

// Two groups under way, the second one waited for last; the third copy's source is not valid.
template <int kPendingAtFirstRead>
__global__ void copy_two_groups(const float* in, float* out) {
  SHOAL_DYN_SMEM(float, smem);
  cp_async_16(smem, in);
  cp_async_commit();
  cp_async_16(smem + 4, in + 4);
  cp_async_16(smem + 8, nullptr, false);
  cp_async_commit();
  cp_async_wait<kPendingAtFirstRead>();
  for (int i = 0; i < 4; ++i) out[i] = smem[i];
  cp_async_wait<0>();
  for (int i = 4; i < 12; ++i) out[i] = smem[i];
}

TEST_CASE("emulated: bytes of cp.async land at the wait for their group, and are NaN until then") {
  DeviceVector<float> in(std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8});
  for_each_order(12, std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0}, [&](float* out) {
    launch(copy_two_groups<1>, 1, 1, 48, nullptr, in.data(), out);
  });
  DeviceVector<float> out(12);
  launch(copy_two_groups<2>, 1, 1, 48, nullptr, in.data(), out.data());  // waits for no group at first
  CHECK(std::isnan(out.host()[0]));
}

// ---- Atomics and bits ------------------------------------------------------------------------------

__global__ void atomics(int* i, unsigned* u, unsigned long long* l, float* f) {
  const int t = threadIdx.x;
  atomicAdd(i, 2);
  atomicAdd(l, 1ull << 33);
  atomicAdd(f, 0.5f);
  atomicMax(i + 1, t);
  atomicMin(i + 2, -t);
  atomicMax(u, 3000000000u + t);
  atomicCAS(i + 3, -1, t);
  atomicExch(u + 1, 9u);
}

TEST_CASE("emulated: atomics") {
  DeviceVector<int> i(std::vector<int>{0, 0, 0, -1});
  DeviceVector<unsigned> u(std::vector<unsigned>{0, 0});
  DeviceVector<unsigned long long> l(std::vector<unsigned long long>{0});
  DeviceVector<float> f(std::vector<float>{0});
  launch(atomics, 1, 100, 0, nullptr, i.data(), u.data(), l.data(), f.data());
  CHECK(i.host() == std::vector<int>{200, 99, -99, 0});
  CHECK(u.host() == std::vector<unsigned>{3000000099u, 9});
  CHECK(l.host()[0] == 100ull << 33);
  CHECK(f.host()[0] == 50);
}

TEST_CASE("emulated: functions on bits and numbers") {
  CHECK(__popc(0xf0f0u) == 8);
  CHECK(__clz(0) == 32);
  CHECK(__clz(1) == 31);
  CHECK(__clz(-1) == 0);
  CHECK(__ffs(0) == 0);
  CHECK(__ffs(8) == 4);
  CHECK(__brev(1u) == 0x80000000u);
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7520) == 0x77552200u);
  CHECK(__byte_perm(0x00008000u, 0, 0x0009) == 0x000000ffu);  // the sign of byte 1
  CHECK(__funnelshift_l(0x80000000u, 1u, 1) == 3u);
  CHECK(__float_as_uint(1.0f) == 0x3f800000u);
  CHECK(__float2int_rn(2.5f) == 2);
  CHECK(__float2int_rn(3e9f) == 2147483647);
  CHECK(__float2int_rz(-3e9f) == -2147483647 - 1);
  CHECK(__float2uint_rn(-1.0f) == 0u);
  CHECK(__float2uint_rn(5e9f) == 4294967295u);
  CHECK(__float2int_rn(NAN) == 0);
  CHECK(min(3, 5u) == 3u);
  CHECK(max(2, int64_t{7}) == 7);
  CHECK(rsqrtf(4.0f) == 0.5f);
  CHECK(__expf(0.0f) == 1.0f);
}

}  // namespace
}  // namespace shoal::gpu
