// What NCCL's collectives do beyond the table of collectives_test.cpp: bfloat16, recorded graphs,
// and the all-reduces over peer memory, whose sums are those of rank order in every bit.
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>

#include "kernels/cuda/cuda_device.h"
#include "parallel/nccl/nccl_collectives.h"
#include "parallel/shard.h"
#include "tests/parallel/support/device_values.h"
#include "tests/parallel/support/values.h"
#include "tests/parallel/support/world.h"

namespace shoal::test {
namespace {

constexpr int64_t kBuffer = 64 << 10;

CudaDevice& cuda() { return dynamic_cast<CudaDevice&>(*world().device); }

// Over the same ranks, with all that fit going through peer memory.
std::unique_ptr<NcclCollectives> make_peer_comm(bool measure = false) {
  return std::make_unique<NcclCollectives>(cuda(), *world().group,
                                           NcclOptions{.time_limit = std::chrono::seconds(30),
                                                       .peer_memory = true,
                                                       .peer_buffer_bytes = kBuffer,
                                                       .measure = measure});
}

template <typename T>
T stored(float x) {
  if constexpr (std::is_same_v<T, BF16>) {
    return to_bf16(x);
  } else {
    return x;
  }
}
float as_float(float x) { return x; }
float as_float(BF16 x) { return to_float(x); }

template <typename T>
std::vector<T> values_of(int rank, int64_t count, uint64_t seed) {
  std::vector<T> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = stored<T>(random_value(seed + 1000 * rank, i));
  return values;
}

// The sum over ranks in rank order, in float, rounded once.
template <typename T>
std::vector<float> exact_sum(int64_t count, uint64_t seed) {
  std::vector<float> sum(count, 0.0f);
  for (int r = 0; r < world().size(); ++r) {
    const std::vector<T> values = values_of<T>(r, count, seed);
    for (int64_t i = 0; i < count; ++i) {
      sum[i] = r == 0 ? as_float(values[i]) : sum[i] + as_float(values[i]);
    }
  }
  return sum;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename T>
void check_shots(PeerAllReduce& peer) {
  const int64_t most = kBuffer / sizeof(T);
  uint64_t seed = 1;
  for (const int64_t count :
       {int64_t{1}, int64_t{2}, int64_t{7}, int64_t{8}, int64_t{9}, int64_t{100}, int64_t{1000},
        int64_t{4096}, int64_t{5001}, most - 1, most}) {
    for (const bool two : {false, true}) {
      CAPTURE(count, two, sizeof(T));
      const OnDevice<T> x(values_of<T>(world().rank(), count, ++seed), {count});
      two ? peer.two_shot(x) : peer.one_shot(x);
      std::vector<T> expected;
      for (float sum : exact_sum<T>(count, seed)) expected.push_back(stored<T>(sum));
      REQUIRE(same_bits(x.host(), expected));
    }
  }
}

TEST_CASE("peer memory: one-shot and two-shot give the sum in rank order, bit by bit") {
  const auto comm = make_peer_comm();
  if (world().size() == 1) {
    CHECK(comm->peer() == nullptr);
    return;
  }
  REQUIRE(comm->peer() != nullptr);
  check_shots<float>(*comm->peer());
  check_shots<BF16>(*comm->peer());
}

TEST_CASE("peer memory: tensors that do not begin at 16 bytes") {
  if (world().size() == 1) return;
  const auto comm = make_peer_comm();
  for (const bool two : {false, true}) {
    const OnDevice<float> whole(values_of<float>(world().rank(), 301, 9), {301});
    const Tensor x = whole.tensor().slice(0, 1, 301);
    two ? comm->peer()->two_shot(x) : comm->peer()->one_shot(x);
    const std::vector<float> sum = exact_sum<float>(301, 9), got = whole.host();
    CHECK(got[0] == values_of<float>(world().rank(), 1, 9)[0]);
    CHECK(std::equal(got.begin() + 1, got.end(), sum.begin() + 1));
  }
}

TEST_CASE("peer memory: ranks that come late, many times in a row") {
  if (world().size() == 1) return;
  const auto comm = make_peer_comm();
  for (int i = 0; i < 60; ++i) {
    const int64_t count = 1 + 97 * i;
    const OnDevice<float> x(values_of<float>(world().rank(), count, i), {count});
    if (i % world().size() == world().rank() && i % 7 == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    i % 2 ? comm->peer()->two_shot(x) : comm->peer()->one_shot(x);
    REQUIRE(same_bits(x.host(), exact_sum<float>(count, i)));
  }
}

template <typename T>
void check_fused(NcclCollectives& comm, int64_t rows, int64_t hidden) {
  CAPTURE(rows, hidden, sizeof(T));
  constexpr float kEps = 1e-6f;
  const int64_t count = rows * hidden;
  const std::vector<T> before = values_of<T>(0, count, 77);  // the same on all ranks
  const std::vector<float> weight = random_values(5, hidden);
  const std::vector<T> own = values_of<T>(world().rank(), count, 3);
  const OnDevice<T> x(own, {rows, hidden}), residual(before, {rows, hidden}), out({rows, hidden});
  const OnDevice<float> w(weight, {hidden});
  const int64_t sent = comm.bytes_sent();
  REQUIRE(comm.all_reduce_add_rms_norm(x, residual, w, kEps, out));
  CHECK(comm.bytes_sent() - sent == (world().size() - 1) * count * static_cast<int64_t>(sizeof(T)));
  const std::vector<float> sum = exact_sum<T>(count, 3);
  std::vector<T> sums;
  for (int64_t i = 0; i < count; ++i) sums.push_back(stored<T>(sum[i] + as_float(before[i])));
  REQUIRE(same_bits(residual.host(), sums));
  REQUIRE(same_bits(x.host(), own));
  const std::vector<T> normed = out.host();
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t i = 0; i < hidden; ++i) squares += std::pow(as_float(sums[r * hidden + i]), 2);
    const double factor = 1 / std::sqrt(squares / static_cast<double>(hidden) + kEps);
    for (int64_t i = 0; i < hidden; ++i) {
      const double expected = as_float(sums[r * hidden + i]) * factor * weight[i];
      // The sum of squares adds hidden positive terms: relative (hidden + 4) 2^-24 at most, half of
      // it after the root; a few roundings more, and that of storage.
      const double relative =
          static_cast<double>(hidden + 16) * 0x1p-24 + (std::is_same_v<T, BF16> ? 0x1p-8 : 0);
      REQUIRE(std::abs(as_float(normed[r * hidden + i]) - expected) <=
              std::abs(expected) * relative + 1e-30);
    }
  }
  for (const auto& other : world().group->gather(std::as_bytes(std::span(normed)))) {
    REQUIRE(std::memcmp(other.data(), normed.data(), other.size()) == 0);
  }
}

TEST_CASE("peer memory: all-reduce, residual and norm in one kernel") {
  const auto comm = make_peer_comm();
  if (world().size() == 1) {
    const OnDevice<float> x({1, 8}), w({8});
    CHECK(!comm->all_reduce_add_rms_norm(x, x, w, 1e-6f, x));
    return;
  }
  for (const auto& [rows, hidden] :
       {std::pair<int64_t, int64_t>{1, 8}, {3, 64}, {1, 5}, {2, 77}, {70, 16}, {2, 4096}}) {
    check_fused<float>(*comm, rows, hidden);
    check_fused<BF16>(*comm, rows, hidden);
  }
  const OnDevice<float> none({0, 8}), w({8});
  CHECK(comm->all_reduce_add_rms_norm(none, none, w, 1e-6f, none));
  const OnDevice<float> large({1, kBuffer / 4 + 4}), large_w({kBuffer / 4 + 4});
  CHECK(!comm->all_reduce_add_rms_norm(large, large, large_w, 1e-6f, large));
}

TEST_CASE("peer memory: a recorded graph meets again at every launch") {
  if (world().size() == 1) return;
  const auto comm = make_peer_comm();
  const int64_t count = 500;
  const OnDevice<float> x({count}), y({3 * count}), rest({2, count}), w({count}), out({2, count});
  const auto graph = world().device->capture([&] {
    comm->at_layer(0);
    comm->all_reduce_sum(x);
    comm->at_layer(1);
    comm->peer()->two_shot(y);
    comm->all_reduce_add_rms_norm(y.tensor().slice(0, 0, 2 * count).reshape({2, count}), rest, w,
                                  1e-6f, out);
  });
  for (int launch = 0; launch < 4; ++launch) {
    const auto own_x = values_of<float>(world().rank(), count, launch);
    const auto own_y = values_of<float>(world().rank(), 3 * count, 50 + launch);
    world().device->copy_to_device(x.tensor().data, own_x.data(), count * 4);
    world().device->copy_to_device(y.tensor().data, own_y.data(), 3 * count * 4);
    comm->at_step(launch);
    graph->launch();
    REQUIRE(same_bits(x.host(), exact_sum<float>(count, launch)));
    REQUIRE(same_bits(y.host(), exact_sum<float>(3 * count, 50 + launch)));
    // Between launches of the graph, a call outside it.
    comm->all_reduce_sum(x);
  }
}

TEST_CASE("peer memory: the crossover is measured, and all ranks choose alike") {
  const auto comm = make_peer_comm(true);
  if (world().size() == 1) return;
  REQUIRE(comm->peer() != nullptr);
  CHECK_THAT(comm->peer()->table(), Catch::Contains("16 KiB: one-shot") &&
                                        Catch::Contains("two-shot") && Catch::Contains("NCCL"));
  for (int64_t bytes = 4; bytes <= 4 * kBuffer; bytes *= 2) {
    const auto way = static_cast<int64_t>(comm->peer()->way_for(bytes));
    CHECK(world().group->min(way) == way);
    CHECK(world().group->min(-way) == -way);
    const OnDevice<float> x(values_of<float>(world().rank(), bytes / 4, 4), {bytes / 4});
    comm->all_reduce_sum(x);
    const std::vector<float> sum = exact_sum<float>(bytes / 4, 4), got = x.host();
    const double bound = 2.0 * world().size() * world().size() * 0x1p-24;
    for (size_t i = 0; i < sum.size(); ++i) REQUIRE(std::abs(got[i] - sum[i]) <= bound);
  }
  CHECK(comm->peer()->way_for(4 * kBuffer) == PeerAllReduce::Way::kNccl);
}

TEST_CASE("peer memory: bytes are counted by the way they go") {
  if (world().size() == 1) return;
  const auto comm = make_peer_comm();
  const auto sent_by = [&](int64_t count) {
    const OnDevice<float> x({count});
    const int64_t before = comm->bytes_sent();
    comm->all_reduce_sum(x);
    return comm->bytes_sent() - before;
  };
  const int size = world().size();
  CHECK(sent_by(1000) == (size - 1) * 4000);
  const int64_t large = kBuffer / 4 + 100;
  const int64_t own = split_evenly(large, size, 16)[world().rank()].size();
  CHECK(sent_by(large) == (large - own + (size - 1) * own) * 4);
}

TEST_CASE("NCCL: bfloat16 and int32 sums") {
  const int size = world().size();
  for (const int64_t count : {1, 100, 3000}) {
    std::vector<BF16> x(count);
    std::vector<int32_t> n(count);
    // Small integers: exact in bfloat16 too.
    for (int64_t i = 0; i < count; ++i) {
      n[i] = static_cast<int32_t>(i % 20 + world().rank());
      x[i] = to_bf16(static_cast<float>(n[i]));
    }
    const OnDevice<BF16> bf16_sum(x, {count}), part({count});
    const OnDevice<int32_t> i32_sum(n, {count});
    world().comm->all_reduce_sum(bf16_sum);
    world().comm->all_reduce_sum(i32_sum);
    const std::vector<BF16> got = bf16_sum.host();
    const std::vector<int32_t> got_n = i32_sum.host();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t expected = size * (i % 20) + size * (size - 1) / 2;
      REQUIRE(to_float(got[i]) == static_cast<float>(expected));
      REQUIRE(got_n[i] == expected);
    }
  }
}

TEST_CASE("NCCL: bfloat16 rows, scattered sums and gathered rows") {
  const int size = world().size(), rank = world().rank();
  std::vector<int64_t> rows(size);
  int64_t total = 0, first = 0;
  for (int r = 0; r < size; ++r) {
    if (r == rank) first = total;
    total += rows[r] = r + 1;
  }
  std::vector<BF16> x(total * 8);
  for (int64_t i = 0; i < total * 8; ++i) x[i] = to_bf16(static_cast<float>(i % 16 + rank));
  const OnDevice<BF16> from(x, {total, 8}), part({rows[rank], 8}), all({total, 8});
  world().comm->reduce_scatter_rows(from, rows, part);
  world().comm->all_gather_rows(part, rows, all);
  const std::vector<BF16> sums = part.host(), gathered = all.host();
  for (int64_t i = 0; i < total * 8; ++i) {
    const auto expected = static_cast<float>(size * (i % 16) + size * (size - 1) / 2);
    REQUIRE(to_float(gathered[i]) == expected);
    if (i >= first * 8 && i < (first + rows[rank]) * 8) {
      REQUIRE(to_float(sums[i - first * 8]) == expected);
    }
  }
}

TEST_CASE("NCCL: all verbs but the counts may be recorded") {
  const int size = world().size(), rank = world().rank();
  const std::vector<int64_t> twos(size, 2);
  std::vector<int64_t> uneven(size, 1);
  uneven[0] = 2;
  const OnDevice<float> x({2 * size, 4}), swapped({2 * size, 4}), part({2, 4}), all({2 * size, 4});
  const OnDevice<float> rows({uneven[rank], 4}), gathered({size + 1, 4}), sum({4}),
      logits({8 * size});
  const auto graph = world().device->capture([&] {
    world().comm->all_to_all_rows(x, twos, swapped, twos);
    world().comm->reduce_scatter_rows(swapped, twos, part);
    world().comm->all_gather_rows(part, twos, all);
    world().comm->all_gather_rows(rows, uneven, gathered);
    world().comm->all_reduce_sum(sum);
    world().comm->gather_rows_to_root(part, std::vector<int64_t>(size, 8),
                                      rank == 0 ? logits.tensor() : Tensor());
  });
  for (int launch = 1; launch <= 3; ++launch) {
    const std::vector<float> ones(8 * size, static_cast<float>(launch * (rank + 1)));
    world().device->copy_to_device(x.tensor().data, ones.data(), ones.size() * 4);
    world().device->copy_to_device(rows.tensor().data, ones.data(), uneven[rank] * 16);
    world().device->copy_to_device(sum.tensor().data, ones.data(), 16);
    graph->launch();
    const auto total = static_cast<float>(launch * size * (size + 1) / 2);
    CHECK(sum.host() == std::vector<float>(4, total));
    std::vector<float> from_each;
    for (int r = 0; r < size; ++r) from_each.insert(from_each.end(), 8, launch * (r + 1.0f));
    CHECK(swapped.host() == from_each);
    // Row r of the swapped rows is rank r's on all ranks.
    std::vector<float> scattered;
    for (int r = 0; r < size; ++r) scattered.insert(scattered.end(), 8, size * launch * (r + 1.0f));
    CHECK(all.host() == scattered);
    if (rank == 0) CHECK(logits.host() == scattered);
    CHECK(gathered.host()[0] == static_cast<float>(launch));
  }
}

}  // namespace
}  // namespace shoal::test
